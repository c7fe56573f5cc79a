"""K4: W8A8 product for many tokens: out = (a @ weight.T) * a_scales * weight_scales + bias.

    a: int8 [tokens, k], weight: int8 [n, k]; sums in int32, exact; scales and bias in float32 at the end

Arithmetic is what takes the time. As many programs as there are multiprocessors each take one tile after the other, in an order
that keeps the tiles of a few rows together, so that what they share is in the cache; tiles are loaded by descriptor
(TMA) on Hopper and later. Do not expect more than CUTLASS here: this is for targets and shapes that it does not have.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from burrstone.kernels.builds import Build
from burrstone.kernels.floats import narrow
from burrstone.kernels.library import arch_of, register
from burrstone.kernels.rows import int8_product
from burrstone.kernels.select import ARCHITECTURES, MULTIPROCESSORS, Tile

NAME = "gemm_w8a8_prefill"
_GROUP_ROWS = 8
# Where a descriptor is a transfer in hardware; elsewhere Triton takes it apart into loads of single bytes.
_DESCRIPTORS = ("sm90", "sm100")
# Descriptors need rows of whole sixteen bytes.
_ALIGNED = 16


@triton.jit
def gemm_w8a8_prefill_kernel(
    out_ptr,
    a,
    a_scales_ptr,
    weight,
    weight_scales_ptr,
    bias_ptr,
    tokens,
    n,
    k,
    HAS_BIAS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN_K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        group = tile // (GROUP * tiles_n)
        high = tl.minimum(tiles_m - group * GROUP, GROUP)
        within = tile % (GROUP * tiles_n)
        row = (group * GROUP + within % high) * BLOCK_M
        column = (within // high) * BLOCK_N
        rows = row + tl.arange(0, BLOCK_M)
        columns = column + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        if DESCRIPTORS:
            for begin in range(0, k, BLOCK_K):
                acc = tl.dot(a.load([row, begin]), weight.load([column, begin]).T, acc, out_dtype=tl.int32)
        else:
            depth = tl.arange(0, BLOCK_K)
            # Rows beyond the end read a row that exists, so that loads need no mask for them; they are not stored.
            a_ptrs = a + (rows % tokens).to(tl.int64)[:, None] * k + depth[None, :]
            weight_ptrs = weight + (columns % n).to(tl.int64)[None, :] * k + depth[:, None]
            for begin in range(0, k, BLOCK_K):
                if EVEN_K:
                    acc = tl.dot(tl.load(a_ptrs + begin), tl.load(weight_ptrs + begin), acc, out_dtype=tl.int32)
                else:
                    inside = depth < k - begin
                    part = tl.load(a_ptrs + begin, mask=inside[None, :], other=0)
                    other = tl.load(weight_ptrs + begin, mask=inside[:, None], other=0)
                    acc = tl.dot(part, other, acc, out_dtype=tl.int32)
        in_m = rows < tokens
        in_n = columns < n
        y = acc.to(tl.float32) * tl.load(a_scales_ptr + rows, mask=in_m, other=0.0)[:, None]
        y *= tl.load(weight_scales_ptr + columns, mask=in_n, other=0.0)[None, :]
        if HAS_BIAS:
            y += tl.load(bias_ptr + columns, mask=in_n, other=0.0).to(tl.float32)[None, :]
        out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
        tl.store(out_ptrs, narrow(y, out_ptr.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


def gemm_w8a8_prefill(
    a: Tensor,
    a_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:
    """[tokens, n] of `dtype`. a: int8 [tokens, k]; weight: int8 [n, k]; scales: float32 [tokens] and [n]; bias: [n].

    All contiguous; k a multiple of 16, or the reference computes it.
    """
    out = torch.empty(a.shape[0], weight.shape[0], dtype=dtype, device=a.device) if out is None else out
    _op(out, a, a_scales, weight, weight_scales, bias)
    return out


def launch(
    out: Tensor,
    a: Tensor,
    a_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    tile: Tile | None = None,
    programs: int | None = None,
    *,
    descriptors: bool | None = None,
) -> None:
    tokens, k = a.shape
    n = weight.shape[0]
    if not tokens or not n:
        return
    arch = arch_of(a.device)
    tile = _tile(arch) if tile is None else tile
    programs = MULTIPROCESSORS.get(arch, 108) if programs is None else programs
    descriptors = arch in _DESCRIPTORS if descriptors is None else descriptors
    gemm_w8a8_prefill_kernel[(min(programs, tile.count(tokens, n)),)](
        out,
        TensorDescriptor(a, [tokens, k], [k, 1], [tile.block_m, tile.block_k]) if descriptors else a,
        a_scales,
        TensorDescriptor(weight, [n, k], [k, 1], [tile.block_n, tile.block_k]) if descriptors else weight,
        weight_scales,
        bias,
        tokens,
        n,
        k,
        HAS_BIAS=bias is not None,
        **_constants(tile, k, descriptors=descriptors),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def reference(
    out: Tensor, a: Tensor, a_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None
) -> None:
    y = int8_product(a, a_scales, weight, weight_scales)
    out.copy_(y if bias is None else y + bias.float())


def builds() -> Iterator[Build]:
    for arch in ARCHITECTURES:
        for dtype, has_bias in (("bf16", False), ("fp16", True)):
            tile = _tile(arch)
            pointers = {"out_ptr": f"*{dtype}", "a_scales_ptr": "*fp32", "weight_scales_ptr": "*fp32"}
            pointers |= {"bias_ptr": f"*{dtype}"} if has_bias else {}
            inputs = {"a": "*i8", "weight": "*i8"}
            if arch in _DESCRIPTORS:
                inputs["a"] = f"tensordesc<i8[{tile.block_m},{tile.block_k}]>"
                inputs["weight"] = f"tensordesc<i8[{tile.block_n},{tile.block_k}]>"
            yield Build(
                name=f"{NAME} {dtype} {tile.told}{' bias' if has_bias else ''}",
                kernel=gemm_w8a8_prefill_kernel,
                types=pointers | inputs | {"tokens": "i32", "n": "i32", "k": "i32"},
                constants=_constants(tile, 4096, descriptors=arch in _DESCRIPTORS)
                | {"HAS_BIAS": has_bias}
                | ({} if has_bias else {"bias_ptr": None}),
                aligned=frozenset({*pointers, "n", "k"} | (set() if arch in _DESCRIPTORS else {"a", "weight"})),
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
                architectures=(arch,),
                tensor_cores=True,
            )


def _constants(tile: Tile, k: int, *, descriptors: bool) -> dict[str, int | bool]:
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    return blocks | {"DESCRIPTORS": descriptors, "EVEN_K": k % tile.block_k == 0, "GROUP": _GROUP_ROWS}


def _tile(arch: str) -> Tile:
    """By what fits: registers on sm80 and sm89, the small shared memory of gfx942."""
    if arch in ("sm90", "sm100"):
        return Tile(128, 128, 128, num_warps=8, num_stages=4)
    return Tile(128, 128, 64, num_warps=8, num_stages=2 if arch == "gfx942" else 3)


def _refused(out: Tensor, a: Tensor, _a_scales: Tensor, weight: Tensor, *_: Tensor | None) -> str | None:
    if a.shape[1] % _ALIGNED:
        return f"k is no multiple of {_ALIGNED}"
    return None if a.is_contiguous() and weight.is_contiguous() and out.is_contiguous() else "not contiguous"


_op = register(
    NAME,
    "(Tensor(a!) out, Tensor a, Tensor a_scales, Tensor weight, Tensor weight_scales, Tensor? bias) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
