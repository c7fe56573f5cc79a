"""K5: weight-only INT8 product."""

import math

import pytest
import torch
from torch import Tensor

from burrstone.kernels.measure.bars import relative
from burrstone.kernels.ops.gemm_w8a16 import launch, reference
from burrstone.kernels.select import Tile
from burrstone.kernels.tall import Workspace


def inputs(tokens: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens * n + k)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return torch.randn(tokens, k).to(dtype), weight, torch.rand(n) / 127, torch.randn(n).to(dtype)


def run(a: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, tile: Tile) -> Tensor:
    """What was in the outputs before must not matter."""
    tokens, n = a.shape[0], weight.shape[0]
    out = torch.full((tokens, n), math.nan, dtype=a.dtype)
    workspace = Workspace.of(tile, tokens, n, torch.float32, a.device)
    workspace.parts.fill_(math.nan)
    for _ in range(2):
        launch(out, a, weight, weight_scales, bias, workspace.parts, workspace.arrivals, tile)
        assert not workspace.arrivals.any(), "the next launch would count on"
    return out


def exact(a: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None) -> Tensor:
    y = a.double() @ weight.double().T * weight_scales.double()[None, :]
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 1, 1), (1, 64, 128), (15, 65, 127), (17, 63, 129), (65, 70, 96)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("splits", [1, 3])
def test_product(tokens: int, n: int, k: int, dtype: torch.dtype, splits: int) -> None:
    given = inputs(tokens, n, k, dtype)
    assert relative(run(*given, Tile(16, 64, 64, splits)), exact(*given)) < (4e-3 if dtype == torch.bfloat16 else 6e-4)


def test_without_bias_and_without_tokens() -> None:
    a, weight, weight_scales, _ = inputs(3, 64, 128, torch.bfloat16)
    found = run(a, weight, weight_scales, None, Tile(16, 64, 64, 2))
    assert relative(found, exact(a, weight, weight_scales, None)) < 4e-3
    assert run(a[:0], weight, weight_scales, None, Tile(16, 64, 64)).shape == (0, 64)


def test_each_time_the_same_bits() -> None:
    given = inputs(5, 100, 1000, torch.bfloat16)
    assert torch.equal(run(*given, Tile(16, 64, 128, 4)), run(*given, Tile(16, 64, 128, 4)))


def test_the_reference_is_the_same() -> None:
    given = inputs(5, 100, 1000, torch.bfloat16)
    out = torch.empty(5, 100)
    reference(out, *given, torch.empty(0), torch.empty(0))
    assert relative(out, exact(*given)) < 1e-6
