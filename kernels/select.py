"""Which tile a product's kernel uses: a row of the tuned table where one was measured, a cost model elsewhere.

Plain Python, so that a choice can be asked for, tested and compiled without a GPU.
"""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

# Programs that one multiprocessor runs at once, roughly: a tile's buffers take a half of its shared memory.
_PROGRAMS_PER_MULTIPROCESSOR = 2
# A split that has less to read than this pays more for meeting the others than it saves.
_LEAST_SPLIT_K = 512
_MAX_SPLITS = 16
MULTIPROCESSORS = {"sm80": 108, "sm89": 58, "sm90": 132, "sm100": 148, "gfx942": 304}
ARCHITECTURES = tuple(MULTIPROCESSORS)


@dataclass(frozen=True, slots=True)
class Tile:
    """m, n, k of one program's tile; how many programs share the sum over k; how it is compiled."""

    block_m: int
    block_n: int
    block_k: int
    splits: int = 1
    num_warps: int = 4
    num_stages: int = 4

    @property
    def told(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k}/{self.splits} w{self.num_warps} s{self.num_stages}"

    def count(self, m: int, n: int) -> int:
        """Tiles of an output [m, n]."""
        return math.ceil(m / self.block_m) * math.ceil(n / self.block_n)

    def constants(self, k: int) -> dict[str, int | bool]:
        """As the kernels name them."""
        return {
            "EVEN_K": k % self.block_k == 0,
            "SPLITS": self.splits,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """`source`: the table's row, with device, Triton and date, or the cost model. wins: whether it was faster than the best that
    was measured beside it; None where nothing was."""

    tile: Tile
    source: str
    wins: bool | None = None


def bucket(m: int) -> int:
    """The table has a row for each power of two from 16 on."""
    return max(16, 1 << max(0, m - 1).bit_length())


def select(kernel: str, arch: str, m: int, n: int, k: int, multiprocessors: int | None = None) -> Choice:
    """m: tokens, at least one. arch: a name such as sm90; one that the table does not have is left to the cost model."""
    row = _table(kernel).get((arch, bucket(m), n, k))
    if row is not None:
        told = row["provenance"]
        source = f"tuned on {told['device']}, Triton {told['triton']}, {told['date']}"
        return Choice(Tile(**row["tile"]), source, row.get("wins"))
    return Choice(predicted(arch, m, n, k, multiprocessors or MULTIPROCESSORS.get(arch, 108)), "cost model")


def predicted(arch: str, m: int, n: int, k: int, multiprocessors: int) -> Tile:
    """A tile whose programs fill the device: narrow first, then with the sum over k split."""
    block_m = min(64, bucket(m))
    block_n = 64
    block_k = 128 if arch != "gfx942" or block_m < 64 else 64
    tiles = Tile(block_m, block_n, block_k).count(m, n)
    wanted = multiprocessors * _PROGRAMS_PER_MULTIPROCESSOR
    splits = 1
    while tiles * splits * 2 <= wanted and k // (splits * 2) >= _LEAST_SPLIT_K and splits < _MAX_SPLITS:
        splits *= 2
    # With four warps, 64 tokens spill on sm100 as long as the sum is split.
    num_warps = 8 if arch == "sm100" and block_m == 64 else 4
    return Tile(block_m, block_n, block_k, splits, num_warps, num_stages=2 if arch == "gfx942" else 4)


def tuned_rows(kernel: str) -> Iterator[dict[str, Any]]:
    """The table as it is in its file: arch, m, n, k, tile, wins, provenance."""
    file = files("burrstone.kernels.tuned") / f"{kernel}.json"
    if file.is_file():
        yield from json.loads(file.read_text())["rows"]


@functools.cache
def _table(kernel: str) -> dict[tuple[str, int, int, int], dict[str, Any]]:
    return {(row["arch"], row["m"], row["n"], row["k"]): row for row in tuned_rows(kernel)}


def forget() -> None:
    """Read the tables again: they were written."""
    _table.cache_clear()
