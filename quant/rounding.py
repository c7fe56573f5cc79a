"""Symmetric INT8: choosing scales and rounding. Everything computes in float32.

q = clamp(round(w / scale), -127, 127), so that q and -q both exist; ties go to the even neighbour, as torch rounds.
"""

from typing import Literal

import torch
from torch import Tensor

QMAX = 127
# A row of zeros still needs a scale that can be divided by.
SCALE_FLOOR = 1e-10

Observer = Literal["absmax", "percentile", "mse"]
Granularity = Literal["per-channel", "per-tensor"]
OBSERVERS: tuple[Observer, ...] = ("absmax", "percentile", "mse")
GRANULARITIES: tuple[Granularity, ...] = ("per-channel", "per-tensor")

_PERCENTILE = 0.9995
# The mse observer tries to clip at these shares of the largest magnitude.
_SHRINKS = [1.0 - step / 50 for step in range(26)]


def weight_scale(weight: Tensor, observer: Observer = "absmax", granularity: Granularity = "per-channel") -> Tensor:
    """The scale of each output channel [N, 1], or of the tensor [1, 1]; float32. weight: [N, K]."""
    rows = weight.float()
    if granularity == "per-tensor":
        rows = rows.reshape(1, -1)
    absmax = rows.abs().amax(dim=1, keepdim=True)
    if observer == "percentile":
        top = absmax if rows.shape[1] < 2 else _kth_largest(rows.abs(), _PERCENTILE)
        # Where nearly all weights are zero, the percentile would be too.
        absmax = torch.where(top > 0, top, absmax)
    elif observer == "mse":
        absmax = absmax * _least_error_shrink(rows, absmax)
    return (absmax / QMAX).clamp(min=SCALE_FLOOR)


def quantize(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 of `weight`'s shape [N, K]; scale: [N, 1] or [1, 1]."""
    return (weight.float() / scale).round_().clamp_(-QMAX, QMAX).to(torch.int8)


def dequantize(quantized: Tensor, scale: Tensor) -> Tensor:
    """float32 [N, K]."""
    return quantized.float() * scale


def round_trip(weight: Tensor, scale: Tensor) -> Tensor:
    """What is left of `weight` [N, K] after quantize and dequantize; float32."""
    return (weight.float() / scale).round_().clamp_(-QMAX, QMAX).mul_(scale)


def round_tokens(x: Tensor) -> Tensor:
    """Activations [..., K] as an INT8 kernel sees them: one absmax scale a token, rounded, scaled back; float32."""
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) / QMAX).clamp_(min=SCALE_FLOOR)
    return (x / scale).round_().clamp_(-QMAX, QMAX).mul_(scale)


def _kth_largest(magnitudes: Tensor, share: float) -> Tensor:
    # torch.quantile refuses rows of more than 16 million.
    kth = max(1, round(share * magnitudes.shape[1]))
    return magnitudes.kthvalue(kth, dim=1, keepdim=True).values


def _least_error_shrink(rows: Tensor, absmax: Tensor) -> Tensor:
    """For each row the share of its largest magnitude at which clipping loses least; [N, 1]."""
    best = torch.ones_like(absmax)
    least = torch.full_like(absmax, torch.inf)
    for shrink in _SHRINKS:
        scale = (absmax * shrink / QMAX).clamp(min=SCALE_FLOOR)
        error = (round_trip(rows, scale) - rows).square_().sum(dim=1, keepdim=True)
        better = error < least
        best, least = torch.where(better, shrink, best), torch.where(better, error, least)
    return best
