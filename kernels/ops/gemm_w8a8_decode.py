"""K3: W8A8 product for few tokens: out = (a @ weight.T) * a_scales * weight_scales + bias.

    a: int8 [tokens, k], weight: int8 [n, k]; sums in int32, exact; scales and bias in float32 at the end

Few tokens make it a matter of reading the weights once, with all of the device: weights are the tall side of each tile, and
where n gives too few tiles the sum over k is split (see tall). int32 parts add up to the same bits in every order.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build, product_builds
from burrstone.kernels.library import arch_of, register
from burrstone.kernels.rows import int8_product
from burrstone.kernels.select import Tile, select
from burrstone.kernels.tall import MAX_TOKENS, Workspace, finish, place, product, scaled, together

NAME = "gemm_w8a8_decode"


@triton.jit
def gemm_w8a8_decode_kernel(
    out_ptr,
    a_ptr,
    a_scales_ptr,
    weight_ptr,
    weight_scales_ptr,
    bias_ptr,
    parts_ptr,
    arrivals_ptr,
    tokens,
    n,
    k,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1)
    columns, rows = place(tile, n, BLOCK_M, BLOCK_N)
    acc = product(
        weight_ptr, a_ptr, columns, rows, tokens, n, k, split, tl.int32, EVEN_K, SPLITS, BLOCK_M, BLOCK_N, BLOCK_K
    )
    acc, last = together(acc, parts_ptr, arrivals_ptr, tile, split, SPLITS, BLOCK_M, BLOCK_N)
    if last:
        y = scaled(acc, a_scales_ptr, weight_scales_ptr, columns, rows, tokens, n)
        finish(y, bias_ptr, out_ptr, columns, rows, tokens, n, HAS_BIAS)


def gemm_w8a8_decode(
    a: Tensor,
    a_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """[tokens, n] of `dtype`. a: int8 [tokens, k]; weight: int8 [n, k]; scales: float32 [tokens] and [n]; bias: [n].

    All contiguous. workspace: one that is kept saves a launch that clears it.
    """
    tokens, n = a.shape[0], weight.shape[0]
    out = torch.empty(tokens, n, dtype=dtype, device=a.device) if out is None else out
    workspace = workspace_for(a.device, tokens, n, a.shape[1]) if workspace is None else workspace
    _op(out, a, a_scales, weight, weight_scales, bias, workspace.parts, workspace.arrivals)
    return out


def workspace_for(device: torch.device, tokens: int, n: int, k: int) -> Workspace:
    """Enough for one product; for several, in turns, take the largest."""
    return Workspace.chosen(NAME, device, tokens, n, k)


def launch(
    out: Tensor,
    a: Tensor,
    a_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    parts: Tensor,
    arrivals: Tensor,
    tile: Tile | None = None,
) -> None:
    tokens, k = a.shape
    n = weight.shape[0]
    if not tokens or not n:
        return
    tile = select(NAME, arch_of(a.device), tokens, n, k).tile if tile is None else tile
    gemm_w8a8_decode_kernel[(tile.count(tokens, n), tile.splits)](
        out,
        a,
        a_scales,
        weight,
        weight_scales,
        bias,
        parts,
        arrivals,
        tokens,
        n,
        k,
        HAS_BIAS=bias is not None,
        **tile.constants(k),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def reference(
    out: Tensor,
    a: Tensor,
    a_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    _parts: Tensor,
    _arrivals: Tensor,
) -> None:
    y = int8_product(a, a_scales, weight, weight_scales)
    out.copy_(y if bias is None else y + bias.float())


def builds() -> Iterator[Build]:
    return product_builds(NAME, gemm_w8a8_decode_kernel, _pointers)


def _pointers(dtype: str) -> dict[str, str]:
    pointers = {"out_ptr": f"*{dtype}", "a_ptr": "*i8", "a_scales_ptr": "*fp32", "weight_ptr": "*i8"}
    return pointers | {"weight_scales_ptr": "*fp32", "parts_ptr": "*i32"}


def _refused(
    out: Tensor, a: Tensor, _a_scales: Tensor, weight: Tensor, _weight_scales: Tensor, _bias: Tensor | None, *_: Tensor
) -> str | None:
    if a.shape[0] > MAX_TOKENS:
        return f"more than {MAX_TOKENS} tokens"
    return None if a.is_contiguous() and weight.is_contiguous() and out.is_contiguous() else "not contiguous"


_op = register(
    NAME,
    "(Tensor(a!) out, Tensor a, Tensor a_scales, Tensor weight, Tensor weight_scales, Tensor? bias, Tensor(b!) parts, "
    "Tensor(c!) arrivals) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
