"""K9: LLM.int8() with known outliers."""

import math

import pytest
import torch
from torch import Tensor

from burrstone.kernels.measure.bars import assert_rows, relative
from burrstone.kernels.ops.llm_int8 import MAX_OUTLIERS, launch, outlier_mask, reference
from burrstone.kernels.select import Tile
from burrstone.kernels.tall import Workspace

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(tokens: int, n: int, k: int, count: int) -> Inputs:
    torch.manual_seed(tokens * n + k)
    outliers = torch.randperm(k)[:count].sort().values.to(torch.int32)
    x = torch.randn(tokens, k)
    x[:, outliers.long()] *= 60
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    weight[:, outliers.long()] = 0
    outlier_weight = torch.randn(n, count).bfloat16()
    bias = torch.randn(n).bfloat16()
    return x.bfloat16(), weight, torch.rand(n) / 127, outliers, outlier_mask(outliers, k), outlier_weight, bias


def run(given: Inputs, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(out, int8 rows, scales). What was in the outputs before must not matter."""
    x, weight = given[0], given[1]
    tokens, n, tile = len(x), len(weight), Tile(16, 64, 64, splits)
    out = torch.full((tokens, n), math.nan).bfloat16()
    rounded, scales = torch.full(x.shape, 77, dtype=torch.int8), torch.full((tokens,), math.nan)
    workspace = Workspace.of(tile, tokens, n, torch.int32, x.device)
    for _ in range(2):
        launch(out, rounded, scales, *given, workspace.parts, workspace.arrivals, tile)
        assert not workspace.arrivals.any(), "the next launch would count on"
    return out, rounded, scales


def exact(given: Inputs, rounded: Tensor, scales: Tensor) -> Tensor:
    """Of the rows as they were rounded."""
    x, weight, weight_scales, outliers, _, outlier_weight, bias = given
    y = (rounded.double() @ weight.double().T) * scales.double()[:, None] * weight_scales.double()[None, :]
    return y + x[:, outliers.long()].double() @ outlier_weight.double().T + bias.double()


@pytest.mark.parametrize(
    ("tokens", "n", "k", "count"), [(1, 1, 2, 1), (3, 65, 200, 0), (17, 63, 129, 7), (5, 64, 256, MAX_OUTLIERS)]
)
@pytest.mark.parametrize("splits", [1, 2])
def test_product(tokens: int, n: int, k: int, count: int, splits: int) -> None:
    given = inputs(tokens, n, k, count)
    out, rounded, scales = run(given, splits)
    assert_rows(rounded, scales, torch.where(given[4].bool(), 0.0, given[0].double()))
    assert relative(out, exact(given, rounded, scales)) < 4e-3


def test_the_reference_is_the_same() -> None:
    given = inputs(5, 100, 300, 9)
    out, rounded, scales = torch.empty(5, 100), torch.empty(5, 300, dtype=torch.int8), torch.empty(5)
    reference(out, rounded, scales, *given, torch.empty(0), torch.empty(0))
    assert relative(out, exact(given, rounded, scales)) < 1e-5
    assert_rows(rounded, scales, torch.where(given[4].bool(), 0.0, given[0].double()))
