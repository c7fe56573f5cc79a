"""How a kernel is compiled: what a launch and the compile gate agree on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import triton
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


def row_warps(n: int) -> int:
    """For kernels that hold a row of n values in registers: 16 values a thread, and more where rows need more than 16 warps."""
    return max(1, min(16, triton.next_power_of_2(n) // 512))


def product_builds(
    name: str, kernel: JITFunction[Any], pointers: Callable[[str], Mapping[str, str]]
) -> Iterator[Build]:
    """Those of a product for few tokens. pointers: argument -> type, but the bias's, for a model's type."""
    for arch, tile in tiles(name, (1, 64)):
        yield _product_build(name, kernel, "bf16", pointers("bf16"), arch, tile, has_bias=False, k=4096)
        if tile.block_m == 16:
            yield _product_build(name, kernel, "fp16", pointers("fp16"), arch, tile, has_bias=True, k=4096 + 16)


def _product_build(
    name: str,
    kernel: JITFunction[Any],
    dtype: str,
    pointers: Mapping[str, str],
    arch: str,
    tile: Tile,
    *,
    has_bias: bool,
    k: int,
) -> Build:
    types = {**pointers, "arrivals_ptr": "*i32"} | ({"bias_ptr": f"*{dtype}"} if has_bias else {})
    return Build(
        name=f"{name} {dtype} {tile.told}{' bias' if has_bias else ''}{'' if k % tile.block_k == 0 else ' odd k'}",
        kernel=kernel,
        types=types | {"tokens": "i32", "n": "i32", "k": "i32"},
        constants=tile.constants(k) | {"HAS_BIAS": has_bias} | ({} if has_bias else {"bias_ptr": None}),
        aligned=frozenset({*types, "n", "k"}),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        architectures=(arch,),
        tensor_cores=True,
    )


def tiles(kernel: str, ms: Sequence[int]) -> Iterator[tuple[str, Tile]]:
    """(architecture, tile): all of the tuned table, and those of Llama 8B's products at these m, where of tiles that differ in
    nothing but how often the sum is split one stands for all."""
    yield from {(row["arch"], Tile(**row["tile"])): None for row in tuned_rows(kernel)}
    for arch in ARCHITECTURES:
        choices = [select(kernel, arch, m, n, k).tile for m in ms for n, k in LLAMA_8B]
        yield from {(arch, replace(tile, splits=min(2, tile.splits))): None for tile in choices}
