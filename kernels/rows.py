"""What the kernels that quantize rows share: one scale a row, its largest magnitude becomes 127.

q = clamp(round(y / scale), -127, 127), ties to even; scale = max(|y|) / 127, and at least SCALE_FLOOR, so that a row of zeros
can be divided by it. A row with a NaN or an infinity gets zeros and a NaN for its scale: what is computed from it is NaN, as
it would be without quantization, and not a number that looks well.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

QMAX = 127
SCALE_FLOOR = 1e-10

_QMAX = tl.constexpr(float(QMAX))
_SCALE_FLOOR = tl.constexpr(SCALE_FLOOR)
_INFINITY_BITS = tl.constexpr(0x7F800000)
# Added to a float32 and taken away again, it rounds to the nearest integer, ties to even, for magnitudes up to 2**22.
# There is no rounding instruction that every target and the interpreter have.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def top_bits(y):
    """The bits of the largest magnitude of float32 [n]. Bits of magnitudes are ordered as the magnitudes are, with infinity
    and then NaN at the top; a maximum of floats would forget a NaN."""
    return tl.max(y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)


@triton.jit
def scale_of(top):
    """(scale, its inverse) of a row whose largest magnitude has these bits; (NaN, 0) where that is no number."""
    finite = top < _INFINITY_BITS
    scale = tl.maximum(top.to(tl.float32, bitcast=True) / _QMAX, _SCALE_FLOOR)
    return tl.where(finite, scale, float("nan")), tl.where(finite, 1.0 / scale, 0.0)


@triton.jit
def quantized(y, inverse):
    """int8 of y's shape; inverse: of its scale."""
    # Nothing is left of a NaN by multiplying it by zero but a NaN.
    ratio = tl.where(inverse > 0.0, y * inverse, 0.0)
    rounded = (ratio + _ROUNDER) - _ROUNDER
    return tl.minimum(tl.maximum(rounded, -_QMAX), _QMAX).to(tl.int8)


def quantize_rows(y: Tensor) -> tuple[Tensor, Tensor]:
    """The reference. y: [..., n], computed in float32. Returns int8 [..., n] and float32 scales [...]."""
    y = y.float()
    absmax = y.abs().amax(dim=-1) if y.shape[-1] else y.new_zeros(y.shape[:-1])
    finite = y.isfinite().all(dim=-1)
    scales = (absmax / QMAX).clamp(min=SCALE_FLOOR)
    ratios = torch.where(finite[..., None], y / scales[..., None], 0.0)
    return ratios.round().clamp(-QMAX, QMAX).to(torch.int8), torch.where(finite, scales, torch.nan)


def int8_product(a: Tensor, a_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    """The reference. float32 [tokens, n] of int8 [tokens, k] and [n, k], whose sums of products are exact in float64."""
    return (a.double() @ weight.double().T).float() * a_scales[:, None] * weight_scales[None, :]
