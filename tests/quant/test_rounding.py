"""Choosing scales and rounding: half a step at most, each row by itself, nothing outside -127..127."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from burrstone.quant.rounding import (
    OBSERVERS,
    QMAX,
    SCALE_FLOOR,
    Observer,
    dequantize,
    quantize,
    round_tokens,
    round_trip,
    weight_scale,
)

SIZES = (1, 2, 3, 4, 5, 127, 128, 129, 257)
SHRINKS = [1.0 - step / 50 for step in range(26)]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """[N, K] of odd shapes, with rows of zeros, of +-max, and with one value that towers over its row."""
    rows, columns = draw(st.sampled_from((1, 2, 3, 5))), draw(st.sampled_from(SIZES))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, columns) * 10.0 ** draw(st.integers(-4, 4))
    for row in range(rows):
        kind = draw(st.sampled_from(("plain", "plain", "zero", "max", "tower")))
        if kind == "zero":
            weight[row] = 0.0
        elif kind == "max":
            weight[row] = 3.0e38 * (torch.randint(0, 2, (columns,)) * 2.0 - 1.0)
        elif kind == "tower":
            weight[row, draw(st.integers(0, columns - 1))] *= 1000
    return weight.to(draw(st.sampled_from((torch.float32, torch.bfloat16))))


@settings(deadline=None, max_examples=60)
@given(weights())
def test_absmax_loses_half_a_step_at_most(weight: Tensor) -> None:
    scale = weight_scale(weight)
    assert scale.shape == (len(weight), 1) and scale.dtype == torch.float32
    assert (scale >= SCALE_FLOOR).all() and torch.isfinite(scale).all()
    lost = (round_trip(weight, scale).double() - weight.double()).abs()
    assert (lost <= scale.double() * 0.5001).all()


@settings(deadline=None, max_examples=60)
@given(weights())
def test_absmax_uses_the_whole_range_of_each_row_that_is_not_zero(weight: Tensor) -> None:
    quantized = quantize(weight, weight_scale(weight))
    reached = quantized.int().abs().amax(dim=1)
    assert reached.tolist() == [QMAX if row.any() else 0 for row in weight]


@settings(deadline=None, max_examples=40)
@given(weights(), st.sampled_from(OBSERVERS))
def test_every_observer_rounds_as_numpy_does(weight: Tensor, observer: Observer) -> None:
    scale = weight_scale(weight, observer)
    wanted = np.clip(np.rint(weight.float().numpy() / scale.numpy()), -127, 127)
    assert quantize(weight, scale).numpy().tolist() == wanted.tolist()


@settings(deadline=None, max_examples=40)
@given(weights(), st.sampled_from(OBSERVERS))
def test_there_and_back_is_one_thing_in_two_ways(weight: Tensor, observer: Observer) -> None:
    before = weight.clone()
    scale = weight_scale(weight, observer)
    assert torch.equal(dequantize(quantize(weight, scale), scale), round_trip(weight, scale) + 0.0)
    assert torch.equal(weight, before), "the input was written to"


@settings(deadline=None, max_examples=40)
@given(weights(), st.sampled_from(OBSERVERS))
def test_a_sign_changes_nothing_but_signs(weight: Tensor, observer: Observer) -> None:
    scale = weight_scale(weight, observer)
    assert torch.equal(weight_scale(-weight, observer), scale)
    assert torch.equal(quantize(-weight, scale), -quantize(weight, scale))


@settings(deadline=None, max_examples=40)
@given(weights(), st.sampled_from(OBSERVERS))
def test_a_row_is_scaled_by_itself_and_a_tensor_as_one_row(weight: Tensor, observer: Observer) -> None:
    alone = torch.cat([weight_scale(row[None], observer) for row in weight])
    assert torch.equal(weight_scale(weight, observer), alone)
    whole = weight_scale(weight, observer, "per-tensor")
    assert whole.shape == (1, 1)
    assert torch.equal(whole, weight_scale(weight.reshape(1, -1), observer))


def test_ties_go_to_the_even_neighbour_and_the_range_is_symmetric() -> None:
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -127.5, -128.0, 300.0]])
    wanted = [[0, 2, 2, 0, -2, -2, 126, 127, -127, -127, 127]]
    assert quantize(weight, torch.ones(1, 1)).tolist() == wanted
    assert round_trip(weight, torch.ones(1, 1)).tolist() == wanted


def test_a_row_of_zeros_stays_one() -> None:
    for observer in OBSERVERS:
        scale = weight_scale(torch.zeros(2, 3), observer)
        assert scale.flatten().tolist() == pytest.approx([SCALE_FLOOR] * 2)
        assert not quantize(torch.zeros(2, 3), scale).any()


def test_mse_finds_the_best_share_of_all_it_tries() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 301, dtype=torch.float64) ** 3
    chosen = weight_scale(weight, "mse")
    for row, scale in zip(weight.numpy(), chosen[:, 0].tolist(), strict=True):
        errors = {}
        for shrink in SHRINKS:
            step = np.abs(row).max() * shrink / 127
            errors[step] = float(((np.clip(np.rint(row / step), -127, 127) * step - row) ** 2).sum())
        best = min(errors, key=errors.__getitem__)
        assert scale == pytest.approx(best, rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(weights())
def test_mse_never_loses_more_than_absmax(weight: Tensor) -> None:
    weight = weight.clamp(-1e15, 1e15)  # squares of more are no float32
    error = [
        (round_trip(weight, weight_scale(weight, observer)).double() - weight.double()).square().sum(dim=1)
        for observer in ("mse", "absmax")
    ]
    assert (error[0] <= error[1] * (1 + 1e-5)).all()


def test_mse_clips_where_that_helps() -> None:
    torch.manual_seed(1)
    weight = torch.randn(4, 4096)
    weight[:, 0] = 12.0
    assert (weight_scale(weight, "mse") < weight_scale(weight) * 0.99).all()


@pytest.mark.parametrize("columns", [2, 3, 999, 1000, 1001, 4000, 10007])
def test_percentile_is_a_magnitude_of_the_row(columns: int) -> None:
    torch.manual_seed(columns)
    weight = torch.randn(3, columns)
    for row, scale in zip(weight, weight_scale(weight, "percentile")[:, 0].tolist(), strict=True):
        ordered = sorted(row.abs().tolist())
        assert scale * 127 == pytest.approx(ordered[round(0.9995 * columns) - 1], rel=1e-5)


def test_percentile_leaves_a_lone_outlier_out_and_a_lone_value_in() -> None:
    weight = torch.full((2, 4000), 0.25)
    weight[0, 7] = -100.0
    weight[1] = 0.0
    weight[1, 9] = 5.0
    assert weight_scale(weight, "percentile").flatten().tolist() == pytest.approx([0.25 / 127, 5.0 / 127])


@settings(deadline=None, max_examples=40)
@given(weights())
def test_tokens_are_rounded_each_by_its_own_largest_value(tokens: Tensor) -> None:
    before = tokens.clone()
    rounded = round_tokens(tokens[None])[0]
    assert rounded.dtype == torch.float32 and torch.equal(tokens, before)
    for token, got in zip(tokens.float(), rounded, strict=True):
        largest = float(token.abs().max())
        step = max(largest / 127, SCALE_FLOOR)
        assert ((got.double() - token.double()).abs() <= step * 0.5001).all()
        assert torch.equal(got, round_tokens(token))
        assert float(got.abs().max()) == pytest.approx(largest, rel=1e-5)
        levels = got.double() / step
        assert torch.allclose(levels, levels.round(), atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(weights())
def test_rounding_what_is_rounded_changes_nothing(tokens: Tensor) -> None:
    once = round_tokens(tokens)
    torch.testing.assert_close(round_tokens(once), once, rtol=1e-5, atol=0.0)
