"""LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) for a served batch: y = x W^T + b with W in INT8.

The paper quantizes each token with the largest of its values below a threshold, and multiplies the outliers in 16 bits.
It does so by taking every column that holds an outlier out of the batch. Which columns those are depends on the data:
the GPU's answer has to be waited for, the step is no CUDA graph, and a token's result depends on its neighbours in the
batch, who are other people's requests. Here an outlier stays in its place as a 16-bit *integer* on its token's own INT8
grid, q = 256 high + low. Both halves are INT8 and meet the same weights, `high` is zero but for outliers, and all sums
are exact.
"""

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from burrstone.quant import rounding
from burrstone.quant.rounding import QMAX

# The largest of q: both halves at 127. (-128 may stand in `low` only.)
_WIDE_QMAX = 256 * QMAX + QMAX


def llm_int8_linear(x: Tensor, weight: Tensor, absmax: Tensor, threshold: float, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b, W = weight * absmax / 127.

    x: [..., K] f32/bf16/f16; weight: [N, K] int8; absmax: [N] f32, what 127 stands for in each row (bitsandbytes' SCB);
    bias: [N]; threshold 0: no outliers, plain INT8 -> [..., N] in x's dtype. Computes in float32 and int32.
    """
    low, high, step = quantize_tokens(x.reshape(-1, x.shape[-1]), threshold)
    y = torch.ops.burrstone.llm_int8_product(low, high, weight) * step * (absmax / QMAX)
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def quantize_tokens(x: Tensor, threshold: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """x ~ step * (256 high + low), to half a step.

    x: [M, K] -> low, high: [M, K] int8 (high is None for threshold 0), step: [M, 1] f32. The step is the token's largest
    inlier / 127, but wide enough for its largest outlier: coarser only where that is 257 times as large.
    """
    x = x.float()
    size = x.abs()
    largest = size.amax(dim=1, keepdim=True)
    # A token of zeros still needs a step that can be divided by.
    floor = torch.finfo(torch.float32).tiny
    if threshold == 0:
        step = (largest / QMAX).clamp(min=floor)
        return torch.round(x / step).to(torch.int8), None, step
    inlier = torch.where(size < threshold, size, 0.0).amax(dim=1, keepdim=True)
    step = torch.maximum(inlier / QMAX, largest / _WIDE_QMAX).clamp(min=floor)
    q = torch.round(x / step)
    high = torch.floor((q + 128) / 256)
    return (q - 256 * high).to(torch.int8), high.to(torch.int8), step


def dequantize(weight: Tensor, absmax: Tensor) -> Tensor:
    """weight: [N, K] int8; absmax: [N] f32 -> [N, K] f32."""
    return rounding.dequantize(weight, (absmax / QMAX).unsqueeze(1))


@functools.cache
def int8_matmul() -> Any:
    """bitsandbytes' a [M, K] int8, b [N, K] int8 -> a b^T [M, N] int32: oneDNN on a CPU, cuBLASLt on a GPU."""
    # On import it advises to install a package called `kernels`, for 4-bit layers.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes  # noqa: F401

    return torch.ops.bitsandbytes.int8_linear_matmul.default


def _product_on_cpu(low: Tensor, high: Tensor | None, weight: Tensor) -> Tensor:
    """(256 high + low) W^T: [M, N] f32. Only tokens that have an outlier cost a second row."""
    matmul, num_tokens = int8_matmul(), low.shape[0]
    if num_tokens == 0:
        return _product_shape(low, high, weight)
    tokens = None if high is None else high.any(dim=1).nonzero().squeeze(1)
    if high is None or tokens is None or tokens.numel() == 0:
        return matmul(low, weight).float()
    if num_tokens == 1:
        # oneDNN is several times as fast with one row as with two, for which it first reorders the weights.
        return torch.add(matmul(low, weight), matmul(high, weight).float(), alpha=256)
    both = matmul(torch.cat([low, high[tokens]]), weight).float()
    return both[:num_tokens].index_add_(0, tokens, both[num_tokens:], alpha=256)


def _product_on_gpu(low: Tensor, high: Tensor | None, weight: Tensor) -> Tensor:
    """The same in one product whose shape depends on no data, so that it can be part of a CUDA graph."""
    matmul, num_tokens = int8_matmul(), low.shape[0]
    if num_tokens == 0:
        return _product_shape(low, high, weight)
    if high is None:
        return matmul(low, weight).float()
    both = matmul(torch.cat([low, high]), weight).float()
    return torch.add(both[:num_tokens], both[num_tokens:], alpha=256)


def _product_shape(low: Tensor, high: Tensor | None, weight: Tensor) -> Tensor:
    return low.new_empty((low.shape[0], weight.shape[0]), dtype=torch.float32)


# An operator, for a compiler must not look inside: the CPU's part asks which tokens have outliers.
_NAME = "burrstone::llm_int8_product"
torch.library.define(_NAME, "(Tensor low, Tensor? high, Tensor weight) -> Tensor")
torch.library.impl(_NAME, "cpu", _product_on_cpu)
torch.library.impl(_NAME, "cuda", _product_on_gpu)
torch.library.register_fake(_NAME, _product_shape)
