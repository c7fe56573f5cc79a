"""Linear layers as each INT8 format computes them, in plain torch: what calibration and evaluation run.

Integer products are formed from float32 values that hold integers; sums beyond 2^24 round, by 6e-8 of themselves.
"""

from collections.abc import Callable

from torch import Tensor, nn

from burrstone.quant.llm_int8 import quantize_tokens
from burrstone.quant.rounding import dequantize, round_tokens

# LLM.int8() keeps activations from this magnitude out of INT8 (Dettmers et al. 2022, arXiv 2208.07339).
OUTLIER_THRESHOLD = 6.0


class W8A16Linear(nn.Module):
    """y = x W^T + b. weight: [N, K] int8; scale: [N, 1] or [1, 1] float32; bias: [N]. Computes in float32."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(dequantize(weight, scale), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., K] -> [..., N]
        return nn.functional.linear(self.activations(x.float()), self.weight, self.bias).to(x.dtype)

    @staticmethod
    def activations(x: Tensor) -> Tensor:
        """What the product sees of x [..., K]."""
        return x


class W8A8Linear(W8A16Linear):
    """With activations rounded to INT8, one scale a token."""

    @staticmethod
    def activations(x: Tensor) -> Tensor:
        return round_tokens(x)


class BnbLinear(W8A16Linear):
    """LLM.int8() as our engine computes it: values at or above the threshold in 16 bits, token by token.

    bitsandbytes and transformers instead leave whole columns unrounded, those with such a value in any token of the call.
    """

    @staticmethod
    def activations(x: Tensor) -> Tensor:
        low, high, step = quantize_tokens(x.reshape(-1, x.shape[-1]), OUTLIER_THRESHOLD)
        q = low.float() if high is None else low.float() + 256 * high.float()
        return (q * step).reshape(x.shape)


LinearMaker = Callable[[Tensor, Tensor, Tensor | None], nn.Module]
