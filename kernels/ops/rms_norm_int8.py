"""K1: (residual add,) RMSNorm and per-row INT8 in one pass: what stands before an INT8 linear layer.

    h = x + residual                    (rounded to their type, and stored: the next residual)
    y = h / sqrt(mean(h^2) + eps) * weight,  in float32
    out, scales = int8(y)               (see rows)

One program a row, the whole row in registers: x, residual are read once, h and int8 written once. Unfused, y is written and
read again in between, and that costs a launch.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build, row_warps
from burrstone.kernels.floats import narrow
from burrstone.kernels.library import register
from burrstone.kernels.rows import quantize_rows, quantized, scale_of, top_bits

# 16 warps of 32 threads hold 32 values each.
MAX_HIDDEN = 16384
# Values in a row, type, whether there is a residual: rows of SmolLM2 135M, Llama 3.1 8B and 405B.
_BUILDS = (
    (576, "bf16", True),
    (4096, "bf16", True),
    (4096, "bf16", False),
    (4096, "fp16", True),
    (16384, "bf16", True),
)


@triton.jit
def rms_norm_int8_kernel(
    out_ptr,
    scales_ptr,
    total_ptr,
    x_ptr,
    weight_ptr,
    residual_ptr,
    hidden,
    x_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * hidden + columns, mask=inside, other=0.0)
        x = narrow(x.to(tl.float32) + residual.to(tl.float32), x.dtype)
        tl.store(total_ptr + row * hidden + columns, x, mask=inside)
    h = x.to(tl.float32)
    mean_of_squares = tl.sum(h * h, axis=0) / hidden
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    y = h * (1.0 / tl.sqrt(mean_of_squares + eps)) * weight
    scale, inverse = scale_of(top_bits(y))
    tl.store(out_ptr + row * hidden + columns, quantized(y, inverse), mask=inside)
    tl.store(scales_ptr + row, scale)


def rms_norm_int8(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    scales: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(int8 [rows, n], float32 scales [rows], x + residual of x's type or None).

    x: [rows, n] float16, bfloat16 or float32, rows may be strided; weight: [n]; residual: [rows, n], contiguous, x's type.
    """
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device) if out is None else out
    scales = torch.empty(x.shape[0], dtype=torch.float32, device=x.device) if scales is None else scales
    if residual is not None and total is None:
        total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _op(out, scales, total, x, weight, eps, residual)
    return out, scales, total


def launch(
    out: Tensor, scales: Tensor, total: Tensor | None, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> None:
    rows, n = x.shape
    if rows and n:
        rms_norm_int8_kernel[(rows,)](
            out,
            scales,
            total,
            x,
            weight,
            residual,
            n,
            x.stride(0),
            eps,
            HAS_RESIDUAL=residual is not None,
            BLOCK=triton.next_power_of_2(n),
            num_warps=row_warps(n),
        )


def reference(
    out: Tensor, scales: Tensor, total: Tensor | None, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> None:
    if residual is not None and total is not None:
        x = total.copy_(x.float() + residual.float())
    h = x.float()
    rounded, found = quantize_rows(h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps) * weight.float())
    out.copy_(rounded)
    scales.copy_(found)


def builds() -> Iterator[Build]:
    for n, dtype, has_residual in _BUILDS:
        pointers = {"x_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}"}
        pointers |= {"residual_ptr": f"*{dtype}", "total_ptr": f"*{dtype}"} if has_residual else {}
        yield Build(
            name=f"rms_norm_int8 {dtype} {n}{' residual' if has_residual else ''}",
            kernel=rms_norm_int8_kernel,
            types={"out_ptr": "*i8", "scales_ptr": "*fp32", **pointers}
            | {"hidden": "i32", "x_stride": "i32", "eps": "fp32"},
            constants={"HAS_RESIDUAL": has_residual, "BLOCK": triton.next_power_of_2(n)}
            | ({} if has_residual else {"residual_ptr": None, "total_ptr": None}),
            aligned=frozenset({"out_ptr", "scales_ptr", "hidden", "x_stride", *pointers}),
            num_warps=row_warps(n),
        )


def _refused(
    _out: Tensor,
    _scales: Tensor,
    total: Tensor | None,
    x: Tensor,
    _weight: Tensor,
    _eps: float,
    residual: Tensor | None,
) -> str | None:
    if x.shape[1] > MAX_HIDDEN:
        return f"rows of more than {MAX_HIDDEN} values"
    if not all(each is None or each.is_contiguous() for each in (residual, total)):
        return "the residual is not contiguous"
    return None if x.stride(1) == 1 else "values of a row are not side by side"


_op = register(
    "rms_norm_int8",
    "(Tensor(a!) out, Tensor(b!) scales, Tensor(c!)? total, Tensor x, Tensor weight, float eps, Tensor? residual) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
