"""K1: residual add, RMSNorm and INT8 rows."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from burrstone.kernels.measure.bars import assert_rows
from burrstone.kernels.ops.rms_norm_int8 import launch, reference

EPS = 1e-5


def run(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What was in the outputs before must not matter. The sum is looked at here."""
    out = torch.full(x.shape, 77, dtype=torch.int8)
    scales = torch.full((x.shape[0],), math.nan)
    total = None if residual is None else torch.full(x.shape, math.nan, dtype=x.dtype)
    before = None if residual is None else residual.clone()
    launch(out, scales, total, x, weight, EPS, residual)
    if residual is not None and total is not None and before is not None:
        assert torch.equal(residual, before)
        assert torch.equal(total, (x.float() + residual.float()).to(x.dtype))
    return out, scales


def exact(x: Tensor, weight: Tensor) -> Tensor:
    h = x.double()
    return h / (h.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (1, 576), (3, 64), (5, 100), (2, 2048), (17, 129)])
@pytest.mark.parametrize("has_residual", [True, False])
def test_rows(dtype: torch.dtype, rows: int, n: int, has_residual: bool) -> None:
    torch.manual_seed(rows * n)
    x, weight = torch.randn(rows, n).to(dtype), torch.randn(n).to(dtype)
    residual = torch.randn(rows, n).to(dtype) if has_residual else None
    h = x if residual is None else (x.float() + residual.float()).to(dtype)
    out, scales = run(x, weight, residual)
    assert_rows(out, scales, exact(h, weight))


def test_rows_may_be_strided_and_none() -> None:
    wide = torch.randn(4, 200, dtype=torch.bfloat16)
    x, weight = wide[:, 30:130], torch.randn(100, dtype=torch.bfloat16)
    out, scales = run(x, weight)
    assert_rows(out, scales, exact(x, weight))
    assert run(x[:0], weight)[0].shape == (0, 100)


def test_what_stands_beyond_a_row_is_not_read() -> None:
    wide = torch.full((3, 128), math.nan, dtype=torch.bfloat16)
    wide[:, :100] = torch.randn(3, 100).to(torch.bfloat16)
    weight = torch.full((128,), math.inf, dtype=torch.bfloat16)
    weight[:100] = 1.0
    out, scales = run(wide[:, :100], weight[:100])
    assert_rows(out, scales, exact(wide[:, :100], weight[:100]))


def test_what_stands_beyond_a_row_is_not_written() -> None:
    out = torch.full((2, 100), 77, dtype=torch.int8)
    scales = torch.full((2,), math.nan)
    launch(out[:1], scales[:1], None, torch.randn(1, 100), torch.ones(100), EPS, None)
    assert (out[1] == 77).all() and scales[1].isnan()


def test_a_row_of_zeros_has_a_scale() -> None:
    out, scales = run(torch.zeros(2, 64), torch.ones(64))
    assert not out.any() and (scales > 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_no_number_says_so(poison: float) -> None:
    x = torch.randn(3, 64)
    x[1, 5] = poison
    out, scales = run(x, torch.ones(64))
    assert scales.isnan().tolist() == [False, True, False] and not out[1].any()
    assert_rows(out[::2], scales[::2], exact(x[::2], torch.ones(64)))


def test_the_reference_is_the_same() -> None:
    x, weight, residual = torch.randn(5, 100), torch.randn(100), torch.randn(5, 100)
    rounded, found, total = torch.empty(5, 100, dtype=torch.int8), torch.empty(5), torch.empty(5, 100)
    reference(rounded, found, total, x, weight, EPS, residual)
    assert_rows(rounded, found, exact(x + residual, weight))
    assert torch.equal(total, x + residual)
    out, scales = run(x, weight, residual)
    assert (out.int() - rounded.int()).abs().max() <= 1
    torch.testing.assert_close(scales, found, rtol=1e-6, atol=0)


def test_the_sum_may_take_the_residuals_place() -> None:
    x, weight, residual = torch.randn(3, 100).bfloat16(), torch.ones(100).bfloat16(), torch.randn(3, 100).bfloat16()
    wanted = (x.float() + residual.float()).bfloat16()
    launch(torch.empty(3, 100, dtype=torch.int8), torch.empty(3), residual, x, weight, EPS, residual)
    assert torch.equal(residual, wanted)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 5),
    n=st.integers(1, 600),
    apart=st.integers(0, 9),
    magnitude=st.sampled_from([1e-6, 1.0, 1e4]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    has_residual=st.booleans(),
)
def test_any_rows(rows: int, n: int, apart: int, magnitude: float, dtype: torch.dtype, has_residual: bool) -> None:
    torch.manual_seed(rows * n)
    x = (torch.randn(rows, n + apart) * magnitude).to(dtype)[:, :n]
    weight, residual = torch.randn(n).to(dtype), torch.randn(rows, n).to(dtype) if has_residual else None
    h = x if residual is None else (x.float() + residual.float()).to(dtype)
    assert_rows(*run(x, weight, residual), exact(h, weight))
