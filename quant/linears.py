"""Linear layers as each INT8 format computes them, in plain torch: what calibration and evaluation run.

Integer products are formed from float32 values that hold integers; sums beyond 2^24 round, by 6e-8 of themselves.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from burrstone.quant.rounding import dequantize, round_tokens

# LLM.int8() keeps activation columns above this magnitude out of INT8 (Dettmers et al. 2022, arXiv 2208.07339).
OUTLIER_THRESHOLD = 6.0


class W8A16Linear(nn.Module):
    """y = x W^T + b. weight: [N, K] int8; scale: [N, 1] or [1, 1] float32; bias: [N]. Computes in float32."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(dequantize(weight, scale), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., K] -> [..., N]
        return nn.functional.linear(self.activations(x.float()), self.weight, self.bias).to(x.dtype)

    def activations(self, x: Tensor) -> Tensor:
        """What the product sees of x [..., K]."""
        return x


class W8A8Linear(W8A16Linear):
    """With activations rounded to INT8, one scale a token."""

    def activations(self, x: Tensor) -> Tensor:
        return round_tokens(x)


class BnbLinear(W8A16Linear):
    """LLM.int8(): columns of x with a value at or above the threshold are multiplied unrounded, the others as W8A8.

    Columns are chosen over all tokens of one call, as the library does.
    """

    def activations(self, x: Tensor) -> Tensor:
        outlier = (x.abs() >= OUTLIER_THRESHOLD).reshape(-1, x.shape[-1]).any(dim=0)
        unrounded = torch.where(outlier, x, 0.0)
        return round_tokens(x - unrounded) + unrounded


LinearMaker = Callable[[Tensor, Tensor, Tensor | None], nn.Module]
