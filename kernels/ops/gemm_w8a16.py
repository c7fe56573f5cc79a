"""K5: weight-only INT8 product: out = (a @ weight.T) * weight_scales + bias.

    a: bfloat16 or float16 [tokens, k], weight: int8 [n, k]; sums in float32; scales and bias in float32 at the end

For few tokens, where weights are what is read: tiles and split sums as for W8A8 (see tall). INT8 becomes 16 bits in registers.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build, product_builds
from burrstone.kernels.library import arch_of, register
from burrstone.kernels.select import Tile, select
from burrstone.kernels.tall import MAX_TOKENS, Workspace, finish, place, product, together

NAME = "gemm_w8a16"


@triton.jit
def gemm_w8a16_kernel(
    out_ptr,
    a_ptr,
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
        weight_ptr, a_ptr, columns, rows, tokens, n, k, split, tl.float32, EVEN_K, SPLITS, BLOCK_M, BLOCK_N, BLOCK_K
    )
    acc, last = together(acc, parts_ptr, arrivals_ptr, tile, split, SPLITS, BLOCK_M, BLOCK_N)
    if last:
        y = acc * tl.load(weight_scales_ptr + columns, mask=columns < n, other=0.0)[:, None]
        finish(y, bias_ptr, out_ptr, columns, rows, tokens, n, HAS_BIAS)


def gemm_w8a16(
    a: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """[tokens, n] of a's type. a: bfloat16 or float16 [tokens, k]; weight: int8 [n, k]; weight_scales: float32 [n]; bias: [n].

    All contiguous. workspace: one that is kept saves a launch that clears it.
    """
    tokens, n = a.shape[0], weight.shape[0]
    out = torch.empty(tokens, n, dtype=a.dtype, device=a.device) if out is None else out
    workspace = workspace_for(a.device, tokens, n, a.shape[1]) if workspace is None else workspace
    _op(out, a, weight, weight_scales, bias, workspace.parts, workspace.arrivals)
    return out


def workspace_for(device: torch.device, tokens: int, n: int, k: int) -> Workspace:
    """Enough for one product; for several, in turns, take the largest."""
    return Workspace.chosen(NAME, device, tokens, n, k, torch.float32)


def launch(
    out: Tensor,
    a: Tensor,
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
    gemm_w8a16_kernel[(tile.count(tokens, n), tile.splits)](
        out,
        a,
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
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    _parts: Tensor,
    _arrivals: Tensor,
) -> None:
    y = a.float() @ weight.float().T * weight_scales[None, :]
    out.copy_(y if bias is None else y + bias.float())


def builds() -> Iterator[Build]:
    return product_builds(NAME, gemm_w8a16_kernel, _pointers)


def _pointers(dtype: str) -> dict[str, str]:
    pointers = {"out_ptr": f"*{dtype}", "a_ptr": f"*{dtype}", "weight_ptr": "*i8", "weight_scales_ptr": "*fp32"}
    return pointers | {"parts_ptr": "*fp32"}


def _refused(
    out: Tensor, a: Tensor, weight: Tensor, _weight_scales: Tensor, _bias: Tensor | None, *_: Tensor
) -> str | None:
    if a.shape[0] > MAX_TOKENS:
        return f"more than {MAX_TOKENS} tokens"
    if a.dtype not in (torch.bfloat16, torch.float16):
        return f"activations are {a.dtype}"
    return None if a.is_contiguous() and weight.is_contiguous() and out.is_contiguous() else "not contiguous"


_op = register(
    NAME,
    "(Tensor(a!) out, Tensor a, Tensor weight, Tensor weight_scales, Tensor? bias, Tensor(b!) parts, Tensor(c!) arrivals)"
    " -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
