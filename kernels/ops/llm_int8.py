"""K9: LLM.int8() with outlier columns that are known beforehand, so that a CUDA graph can hold it.

    out = int8(x without outliers) @ weight.T * scales + x[:, outliers] @ outlier_weight.T + bias

bitsandbytes looks for outliers in every call and changes shapes with what it finds. Here they are a list of at most 64 columns;
`weight` holds zeros there, so all that an outlier must not do is to decide its row's scale. Two launches: rows, product.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build, row_warps, tiles
from burrstone.kernels.floats import operand
from burrstone.kernels.library import arch_of, register
from burrstone.kernels.rows import int8_product, quantize_rows, quantized, scale_of, top_bits
from burrstone.kernels.select import Tile, select
from burrstone.kernels.tall import MAX_TOKENS, Workspace, finish, place, product, scaled, together

NAME = "llm_int8"
MAX_OUTLIERS = 64
MAX_K = 32768


@triton.jit
def llm_int8_rows_kernel(out_ptr, scales_ptr, x_ptr, is_outlier_ptr, x_stride, k, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < k
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    counts = tl.load(is_outlier_ptr + columns, mask=inside, other=1) == 0
    scale, inverse = scale_of(top_bits(tl.where(counts, x, 0.0)))
    tl.store(out_ptr + row * k + columns, quantized(tl.where(counts, x, 0.0), inverse), mask=inside)
    tl.store(scales_ptr + row, scale)


@triton.jit
def llm_int8_product_kernel(
    out_ptr,
    a_ptr,
    a_scales_ptr,
    weight_ptr,
    weight_scales_ptr,
    x_ptr,
    outliers_ptr,
    outlier_weight_ptr,
    bias_ptr,
    parts_ptr,
    arrivals_ptr,
    tokens,
    n,
    k,
    x_stride,
    outliers,
    HAS_BIAS: tl.constexpr,
    BLOCK_OUTLIERS: tl.constexpr,
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
        in_n = columns < n
        in_m = rows < tokens
        y = scaled(acc, a_scales_ptr, weight_scales_ptr, columns, rows, tokens, n)
        number = tl.arange(0, BLOCK_OUTLIERS)
        listed = number < outliers
        outlier = tl.load(outliers_ptr + number, mask=listed, other=0)
        weight_ptrs = outlier_weight_ptr + columns.to(tl.int64)[:, None] * outliers + number[None, :]
        outlier_weight = tl.load(weight_ptrs, mask=in_n[:, None] & listed[None, :], other=0.0)
        x_ptrs = x_ptr + rows.to(tl.int64)[None, :] * x_stride + outlier[:, None]
        x = tl.load(x_ptrs, mask=in_m[None, :] & listed[:, None], other=0.0)
        y = tl.dot(operand(outlier_weight), operand(x), y)
        finish(y, bias_ptr, out_ptr, columns, rows, tokens, n, HAS_BIAS)


def outlier_mask(outliers: Tensor, k: int) -> Tensor:
    """uint8 [k], one at the outliers."""
    mask = torch.zeros(k, dtype=torch.uint8, device=outliers.device)
    mask[outliers.long()] = 1
    return mask


def llm_int8(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    outliers: Tensor,
    is_outlier: Tensor,
    outlier_weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """[tokens, n] of x's type.

    x: bfloat16 or float16 [tokens, k], rows may be strided; weight: int8 [n, k], zero in outlier columns; weight_scales:
    float32 [n]; outliers: int32 [at most 64], columns; is_outlier: uint8 [k], see outlier_mask; outlier_weight: [n, outliers] of
    x's type; bias: [n]. workspace: one that is kept saves a launch that clears it.
    """
    tokens, n = x.shape[0], weight.shape[0]
    out = torch.empty(tokens, n, dtype=x.dtype, device=x.device) if out is None else out
    rounded = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
    workspace = workspace_for(x.device, tokens, n, x.shape[1]) if workspace is None else workspace
    columns = (outliers, is_outlier, outlier_weight)
    _op(out, rounded, scales, x, weight, weight_scales, *columns, bias, workspace.parts, workspace.arrivals)
    return out


def workspace_for(device: torch.device, tokens: int, n: int, k: int) -> Workspace:
    """Enough for one product; for several, in turns, take the largest."""
    return Workspace.chosen(NAME, device, tokens, n, k)


def launch(
    out: Tensor,
    rounded: Tensor,
    scales: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    outliers: Tensor,
    is_outlier: Tensor,
    outlier_weight: Tensor,
    bias: Tensor | None,
    parts: Tensor,
    arrivals: Tensor,
    tile: Tile | None = None,
) -> None:
    tokens, k = x.shape
    n = weight.shape[0]
    if not tokens or not n:
        return
    block = triton.next_power_of_2(k)
    llm_int8_rows_kernel[(tokens,)](rounded, scales, x, is_outlier, x.stride(0), k, BLOCK=block, num_warps=row_warps(k))
    tile = select(NAME, arch_of(x.device), tokens, n, k).tile if tile is None else tile
    llm_int8_product_kernel[(tile.count(tokens, n), tile.splits)](
        out,
        rounded,
        scales,
        weight,
        weight_scales,
        x,
        outliers,
        outlier_weight,
        bias,
        parts,
        arrivals,
        tokens,
        n,
        k,
        x.stride(0),
        len(outliers),
        HAS_BIAS=bias is not None,
        BLOCK_OUTLIERS=MAX_OUTLIERS,
        **tile.constants(k),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def reference(
    out: Tensor,
    rounded: Tensor,
    scales: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    outliers: Tensor,
    is_outlier: Tensor,
    outlier_weight: Tensor,
    bias: Tensor | None,
    _parts: Tensor,
    _arrivals: Tensor,
) -> None:
    kept = torch.where(is_outlier.bool(), 0.0, x.float())
    for given, found in zip((rounded, scales), quantize_rows(kept), strict=True):
        given.copy_(found)
    y = int8_product(rounded, scales, weight, weight_scales)
    y += x[:, outliers.long()].float() @ outlier_weight.float().T
    out.copy_(y if bias is None else y + bias.float())


def builds() -> Iterator[Build]:
    for k in (4096, 14336):
        pointers = {"out_ptr": "*i8", "scales_ptr": "*fp32", "x_ptr": "*bf16", "is_outlier_ptr": "*u8"}
        yield Build(
            name=f"{NAME} rows bf16 {k}",
            kernel=llm_int8_rows_kernel,
            types=pointers | {"x_stride": "i32", "k": "i32"},
            constants={"BLOCK": triton.next_power_of_2(k)},
            aligned=frozenset({*pointers, "x_stride", "k"}),
            num_warps=row_warps(k),
        )
    for arch, tile in tiles(NAME, (1, 64)):
        pointers = {"out_ptr": "*bf16", "a_ptr": "*i8", "a_scales_ptr": "*fp32", "weight_ptr": "*i8"}
        pointers |= {
            "weight_scales_ptr": "*fp32",
            "x_ptr": "*bf16",
            "outliers_ptr": "*i32",
            "outlier_weight_ptr": "*bf16",
        }
        pointers |= {"parts_ptr": "*i32", "arrivals_ptr": "*i32"}
        yield Build(
            name=f"{NAME} bf16 {tile.told}",
            kernel=llm_int8_product_kernel,
            types=pointers | {name: "i32" for name in ("tokens", "n", "k", "x_stride", "outliers")},
            constants=tile.constants(4096) | {"HAS_BIAS": False, "bias_ptr": None, "BLOCK_OUTLIERS": MAX_OUTLIERS},
            aligned=frozenset({*pointers, "n", "k", "x_stride"}),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            architectures=(arch,),
            tensor_cores=True,
        )


def _refused(
    out: Tensor, _rounded: Tensor, _scales: Tensor, x: Tensor, weight: Tensor, *rest: Tensor | None
) -> str | None:
    outliers = rest[1]
    if x.shape[0] > MAX_TOKENS:
        return f"more than {MAX_TOKENS} tokens"
    if outliers is not None and len(outliers) > MAX_OUTLIERS:
        return f"more than {MAX_OUTLIERS} outliers"
    if x.shape[1] > MAX_K:
        return f"rows of more than {MAX_K} values"
    if x.element_size() != 2:
        return f"inputs are {x.dtype}"
    return None if weight.is_contiguous() and out.is_contiguous() and x.stride(1) == 1 else "not contiguous"


_op = register(
    NAME,
    "(Tensor(a!) out, Tensor(b!) rounded, Tensor(c!) scales, Tensor x, Tensor weight, Tensor weight_scales, "
    "Tensor outliers, Tensor is_outlier, Tensor outlier_weight, Tensor? bias, Tensor(d!) parts, Tensor(e!) arrivals) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
