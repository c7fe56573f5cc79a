"""One-sided bounds that mean what they say."""

import math

import numpy as np
import pytest

from burrstone.quant.statistics import CONFIDENCE, bounded_mean


@pytest.mark.parametrize("num_rows", [32, 64])
def test_each_bound_covers_the_true_mean_about_as_often_as_it_says(num_rows: int) -> None:
    draw = np.random.default_rng(3)
    above = below = 0
    for _ in range(200):
        found = bounded_mean(draw.normal(1.0, 2.0, num_rows))
        assert found.lower < found.mean < found.upper
        above, below = above + (found.upper >= 1.0), below + (found.lower <= 1.0)
    for covered in (above, below):
        assert abs(covered / 200 - CONFIDENCE) < 0.045


@pytest.mark.parametrize("num_rows", [100, 400])
def test_for_many_rows_they_are_the_textbooks(num_rows: int) -> None:
    values = np.random.default_rng(num_rows).normal(3.0, 2.0, num_rows)
    found = bounded_mean(values)
    # One-sided: 1.645 standard errors, where two-sided ones would be 1.96.
    error = 1.645 * values.std() / math.sqrt(num_rows)
    assert found.mean == values.mean()
    assert found.upper - found.mean == pytest.approx(error, rel=0.05)
    assert found.mean - found.lower == pytest.approx(error, rel=0.05)


def test_more_rows_narrow_it_and_the_same_rows_give_the_same() -> None:
    values = np.random.default_rng(0).normal(size=400)
    few, many = bounded_mean(values[:25]), bounded_mean(values)
    assert many.upper - many.lower < 0.5 * (few.upper - few.lower)
    assert bounded_mean(values) == many


def test_another_seed_gives_nearly_the_same() -> None:
    values = np.random.default_rng(0).normal(size=100)
    one, other = bounded_mean(values, seed=0), bounded_mean(values, seed=1)
    assert one != other
    assert one.upper == pytest.approx(other.upper, abs=0.01) and one.lower == pytest.approx(other.lower, abs=0.01)


@pytest.mark.parametrize("num_rows", [1, 2, 8, 33])
def test_units_do_not_matter_and_a_sign_swaps_the_bounds(num_rows: int) -> None:
    values = np.random.default_rng(num_rows).gamma(1.0, 1.0, num_rows)
    found = bounded_mean(values)
    assert bounded_mean(4 * values + 8) == pytest.approx([4 * part + 8 for part in found])
    turned = bounded_mean(-values)
    assert turned == pytest.approx([-found.mean, -found.upper, -found.lower])


def test_values_that_are_all_alike_leave_no_doubt() -> None:
    assert tuple(bounded_mean(np.full(9, 0.25))) == (0.25, 0.25, 0.25)
    assert tuple(bounded_mean(np.array([0.25]))) == (0.25, 0.25, 0.25)


def test_one_value_that_is_no_number_makes_the_rest_none() -> None:
    found = bounded_mean(np.array([0.0] * 63 + [math.nan]))
    assert not any(math.isfinite(part) for part in found)
