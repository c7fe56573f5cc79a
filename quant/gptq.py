"""GPTQ: round a weight column by column, and let the columns not yet rounded make up for each error.

Frantar et al. 2022 (arXiv 2210.17323). The scale of each output channel is chosen beforehand and stays. Columns go in
descending order of how strongly they are driven ("activation ordering"), but are stored where they were: with one scale
a channel, kernels need not know.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from burrstone.quant.errors import QuantizeError
from burrstone.quant.rounding import QMAX

_BLOCK = 128
_MAX_DAMPENING = 1.0


class GptqResult(NamedTuple):
    """quantized: [N, K] int8. dampening: what was really used, as a share of the Hessian's mean diagonal."""

    quantized: Tensor
    dampening: float


def gptq(weight: Tensor, scale: Tensor, hessian: Tensor, *, dampening: float = 0.01) -> GptqResult:
    """weight: [N, K] float; scale: [N, 1] or [1, 1]; hessian: [K, K], the mean of x x^T over tokens x.

    Raises QuantizeError where no dampening up to the Hessian's own size makes it invertible.
    """
    left = weight.to(torch.float32, copy=True)
    hessian = hessian.float()
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    left = left[:, order]
    inverse, used = _inverse_factor(hessian[order][:, order], dampening)
    rows, columns = left.shape
    scale_of = scale.float().expand(rows, 1)[:, 0]
    rounded = torch.empty(rows, columns, dtype=torch.int8, device=left.device)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.empty(rows, end - start, device=left.device)
        for column in range(start, end):
            current = left[:, column]
            level = (current / scale_of).round_().clamp_(-QMAX, QMAX)
            rounded[:, column] = level.to(torch.int8)
            error = (current - level * scale_of) / inverse[column, column]
            left[:, column:end] -= error[:, None] * inverse[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ inverse[start:end, end:]
    unordered = torch.empty_like(rounded)
    unordered[:, order] = rounded
    return GptqResult(unordered, used)


def _inverse_factor(hessian: Tensor, dampening: float) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the damped Hessian's inverse, and the dampening it took."""
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if not math.isfinite(mean):
        raise QuantizeError(
            "GPTQ: what flows into a layer is no finite number; the model is broken, or not made for float32"
        )
    if mean == 0:  # nothing ever flowed in: every rounding is as good
        return torch.eye(len(hessian), device=hessian.device), dampening
    while dampening <= _MAX_DAMPENING:
        damped = hessian.clone()
        damped.diagonal().add_(dampening * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper, dampening
        dampening *= 10
    raise QuantizeError("GPTQ: the Hessian of a layer cannot be inverted; give more or other calibration data")
