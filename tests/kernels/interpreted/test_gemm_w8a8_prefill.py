"""K4: W8A8 product for many tokens."""

import math

import pytest
import torch
from torch import Tensor

from burrstone.kernels.measure.bars import assert_bfloat16, relative
from burrstone.kernels.ops.gemm_w8a8_prefill import launch, reference
from burrstone.kernels.select import Tile


def inputs(tokens: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens * n + k)
    a = torch.randint(-127, 128, (tokens, k), dtype=torch.int8)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return a, torch.rand(tokens) + 0.01, weight, torch.rand(n) / 127, torch.randn(n, dtype=torch.bfloat16)


def exact(a: Tensor, a_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None) -> Tensor:
    y = (a.double() @ weight.double().T) * a_scales.double()[:, None] * weight_scales.double()[None, :]
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 1, 16), (65, 63, 160), (200, 130, 64), (33, 300, 80)])
@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("descriptors", [True, False])
def test_product(tokens: int, n: int, k: int, programs: int, has_bias: bool, descriptors: bool) -> None:
    a, a_scales, weight, weight_scales, bias = inputs(tokens, n, k)
    given = (a, a_scales, weight, weight_scales, bias if has_bias else None)
    out = torch.full((tokens, n), math.nan, dtype=torch.bfloat16)
    launch(out, *given, Tile(16, 32, 64), programs, descriptors=descriptors)
    assert_bfloat16(out, exact(*given))


def test_nothing() -> None:
    a, *rest = inputs(1, 8, 16)
    launch(torch.empty(0, 8), a[:0], *rest)


def test_the_reference_is_the_same() -> None:
    given = inputs(70, 100, 1000)
    out = torch.empty(70, 100)
    reference(out, *given)
    assert relative(out, exact(*given)) < 1e-6
