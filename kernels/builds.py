"""How a kernel is compiled: what a launch and the compile gate agree on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from triton.runtime.jit import JITFunction

from burrstone.kernels.select import ARCHITECTURES, Tile, select, tuned_rows

# n, k of the products in a layer of Llama 3.1 8B: attention's input and output, the MLP's two.
LLAMA_8B = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))


@dataclass(frozen=True, slots=True)
class Build:
    """One specialization. types: argument -> Triton's name of its type, constants left out. aligned: pointers and numbers
    that are multiples of 16. architectures: those it is launched on. tensor_cores: whether it must use them.
    max_registers: of a thread."""

    name: str
    kernel: JITFunction[Any]
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str]
    num_warps: int
    num_stages: int = 3
    architectures: Sequence[str] = ARCHITECTURES
    tensor_cores: bool = False
    max_registers: int = 255


def block_above(n: int) -> int:
    """The least power of two that holds n."""
    return 1 << max(0, n - 1).bit_length()


def tiles(kernel: str, ms: Sequence[int]) -> Iterator[tuple[str, Tile]]:
    """(architecture, tile): all of the tuned table, and those of Llama 8B's products at these m, where of tiles that differ in
    nothing but how often the sum is split one stands for all."""
    yield from {(row["arch"], Tile(**row["tile"])): None for row in tuned_rows(kernel)}
    for arch in ARCHITECTURES:
        choices = [select(kernel, arch, m, n, k).tile for m in ms for n, k in LLAMA_8B]
        yield from {(arch, replace(tile, splits=min(2, tile.splits))): None for tile in choices}
