"""K2: SiLU(gate) * up and INT8 rows."""

import math

import pytest
import torch
from torch import Tensor

from burrstone.kernels.measure.bars import assert_rows
from burrstone.kernels.ops.silu_mul_int8 import launch, reference


def run(x: Tensor) -> tuple[Tensor, Tensor]:
    """What was in the outputs before must not matter."""
    rows, n = x.shape[0], x.shape[1] // 2
    out, scales = torch.full((rows, n), 77, dtype=torch.int8), torch.full((rows,), math.nan)
    launch(out, scales, x)
    return out, scales


def exact(x: Tensor) -> Tensor:
    gate, up = x.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 64), (5, 100), (2, 1536), (17, 129)])
def test_rows(dtype: torch.dtype, rows: int, n: int) -> None:
    torch.manual_seed(rows * n)
    x = (4 * torch.randn(rows, 2 * n)).to(dtype)
    assert_rows(*run(x), exact(x))


def test_large_magnitudes() -> None:
    x = torch.tensor([[-1000.0, 1000.0, -88.0, 0.0, 3.0, 100.0, 1e4, -7.0]])
    assert_rows(*run(x), exact(x))


def test_rows_may_be_strided_and_none() -> None:
    wide = torch.full((4, 256), math.nan)
    wide[:, 20:220] = torch.randn(4, 200)
    x = wide[:, 20:220]
    assert_rows(*run(x), exact(x))
    assert run(x[:0])[0].shape == (0, 100)


@pytest.mark.parametrize("place", [5, 64 + 5])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_no_number_says_so(poison: float, place: int) -> None:
    x = torch.randn(3, 128)
    x[1, place] = poison
    out, scales = run(x)
    assert scales.isnan().tolist() == [False, True, False] and not out[1].any()


def test_the_reference_is_the_same() -> None:
    x = torch.randn(5, 200)
    out, scales = torch.empty(5, 100, dtype=torch.int8), torch.empty(5)
    reference(out, scales, x)
    assert_rows(out, scales, exact(x))
