"""What the products for few tokens share: weights as the tall side of a tile, and the sum over k split among programs.

Tensor cores take 64 rows at least on Hopper, and tokens are fewer, so each tile is [block_n weights, block_m tokens]. Programs
that share a tile leave their parts in memory, and the last one to arrive adds them up, always in the same order: the result
does not depend on who was last, and there are no atomic sums. It also clears the tile's count, so that the next launch, or a
graph's replay, needs nothing to be zeroed first.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.floats import narrow, operand, operand_of_int8
from burrstone.kernels.library import arch_of
from burrstone.kernels.select import Tile, select

# More are a matter of arithmetic, not of reading weights.
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where programs leave their parts [numel] and are counted [tiles], zero between launches. One stream's alone."""

    parts: Tensor
    arrivals: Tensor

    @classmethod
    def chosen(
        cls, kernel: str, device: torch.device, m: int, n: int, k: int, dtype: torch.dtype = torch.int32
    ) -> "Workspace":
        """Enough for one of this kernel's products there; for several, in turns, take the largest. dtype: of the sums."""
        return cls.of(select(kernel, arch_of(device), max(1, m), n, k).tile, m, n, dtype, device)

    @classmethod
    def of(cls, tile: Tile, m: int, n: int, dtype: torch.dtype, device: torch.device) -> "Workspace":
        """Enough for an output [m, n]."""
        parts, tiles = cls.room(tile, m, n)
        return cls(torch.empty(parts, dtype=dtype, device=device), torch.zeros(tiles, dtype=torch.int32, device=device))

    @staticmethod
    def room(tile: Tile, m: int, n: int) -> tuple[int, int]:
        """(values that programs leave for one another, tiles) of an output [m, n]."""
        tiles = tile.count(m, n)
        return (tiles * tile.splits * tile.block_m * tile.block_n if tile.splits > 1 else 0), tiles


@triton.jit
def arrives_last(arrival_ptr, SPLITS: tl.constexpr):
    """Whether the tile's other programs have been here, each after storing its part. The last clears the tile's count."""
    # Every thread's values are stored before one of the threads counts.
    tl.debug_barrier()
    last = tl.atomic_add(arrival_ptr, 1, sem="acq_rel") == SPLITS - 1
    if last:
        tl.store(arrival_ptr, 0)
    return last


@triton.jit
def place(tile, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(rows of the weights, tokens) of a tile; both may reach beyond the end."""
    tiles_n = tl.cdiv(n, BLOCK_N)
    columns = (tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    return columns, (tile // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def product(
    weight_ptr,
    a_ptr,
    columns,
    rows,
    tokens,
    n,
    k,
    split,
    ACC: tl.constexpr,
    EVEN_K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """This split's part of weight [n, k] times a [tokens, k], as [BLOCK_N, BLOCK_M] of type ACC."""
    depth = tl.arange(0, BLOCK_K)
    # Rows beyond the end read a row that exists, so that loads need no mask for them; they are not stored.
    weight_ptrs = weight_ptr + (columns % n).to(tl.int64)[:, None] * k + depth[None, :]
    a_ptrs = a_ptr + (rows % tokens).to(tl.int64)[None, :] * k + depth[:, None]
    steps = tl.cdiv(k, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=ACC)
    for step in range(steps * split // SPLITS, steps * (split + 1) // SPLITS):
        begin = step * BLOCK_K
        if EVEN_K:
            weight = tl.load(weight_ptrs + begin)
            a = tl.load(a_ptrs + begin)
        else:
            inside = depth < k - begin
            weight = tl.load(weight_ptrs + begin, mask=inside[None, :], other=0)
            a = tl.load(a_ptrs + begin, mask=inside[:, None], other=0)
        if tl.int32 == ACC:
            acc = tl.dot(weight, a, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(operand_of_int8(weight, a.dtype), operand(a), acc)
    return acc


@triton.jit
def together(
    acc, parts_ptr, arrivals_ptr, tile, split, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """(the whole sum, whether this program is the one that has it)."""
    last = tl.program_id(0) >= 0
    if SPLITS > 1:
        within = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        part_ptrs = parts_ptr + tile.to(tl.int64) * (SPLITS * BLOCK_N * BLOCK_M) + within
        tl.store(part_ptrs + split * (BLOCK_N * BLOCK_M), acc)
        last = arrives_last(arrivals_ptr + tile, SPLITS)
        if last:
            acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=acc.dtype)
            for part in range(SPLITS):
                # Not from this multiprocessor's own cache, which does not see what others wrote.
                acc += tl.load(part_ptrs + part * (BLOCK_N * BLOCK_M), cache_modifier=".cg")
    return acc, last


@triton.jit
def scaled(acc, a_scales_ptr, weight_scales_ptr, columns, rows, tokens, n):
    """int32 [BLOCK_N, BLOCK_M] to float32, by the scales of rows of a [tokens] and of the weights [n]."""
    y = acc.to(tl.float32) * tl.load(a_scales_ptr + rows, mask=rows < tokens, other=0.0)[None, :]
    return y * tl.load(weight_scales_ptr + columns, mask=columns < n, other=0.0)[:, None]


@triton.jit
def finish(y, bias_ptr, out_ptr, columns, rows, tokens, n, HAS_BIAS: tl.constexpr):
    """Add the bias [n] to y, float32 [BLOCK_N, BLOCK_M], and store it into out [tokens, n]."""
    in_n = columns < n
    if HAS_BIAS:
        y += tl.load(bias_ptr + columns, mask=in_n, other=0.0).to(tl.float32)[:, None]
    out_ptrs = out_ptr + rows.to(tl.int64)[None, :] * n + columns[:, None]
    tl.store(out_ptrs, narrow(y, out_ptr.dtype.element_ty), mask=in_n[:, None] & (rows < tokens)[None, :])
