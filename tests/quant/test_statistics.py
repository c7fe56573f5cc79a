"""One-sided bounds that mean what they say."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from burrstone.quant.statistics import CONFIDENCE, bounded_mean, lost_cases


@pytest.mark.parametrize("num_rows", [8, 16, 32, 64])
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


def test_one_row_alone_bounds_nothing() -> None:
    assert tuple(bounded_mean(np.array([0.25]))) == (0.25, -math.inf, math.inf)


def test_one_value_that_is_no_number_makes_the_rest_none() -> None:
    found = bounded_mean(np.array([0.0] * 63 + [math.nan]))
    assert not any(math.isfinite(part) for part in found)


def right(both: int, lost: int, gained: int, neither: int) -> NDArray[np.float64]:
    rows = [(1, 1)] * both + [(1, 0)] * lost + [(0, 1)] * gained + [(0, 0)] * neither
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize("number", [1, 10, 133, 1000])
def test_cases_that_are_alike_bound_a_loss_by_their_number(number: int) -> None:
    found = lost_cases(right(number, 0, 0, 0))
    room = 1.6448536**2 / (number + 1.6448536**2)
    assert found == pytest.approx((0.0, -room, room), abs=1e-7)


def test_the_interval_is_where_the_score_is_z() -> None:
    # By its definition: the score, with the chances that are likeliest for each bound found by trying them all.
    gained, lost, number = 3, 7, 60
    found = lost_cases(right(40, lost, gained, 10))
    for bound, sign in ((found.lower, 1), (found.upper, -1)):
        chances = np.linspace(1e-9, 1, 400_001)[:-1]  # of a lost case; a gained one is as likely plus the difference
        other = chances + bound
        rest = 1 - chances - other
        allowed = (other > 0) & (rest > 0)
        likelihood = np.full(len(chances), -math.inf)
        likelihood[allowed] = (
            lost * np.log(chances[allowed])
            + gained * np.log(other[allowed])
            + (number - lost - gained) * np.log(rest[allowed])
        )
        chance = chances[likelihood.argmax()]
        error = math.sqrt((2 * chance + bound * (1 - bound)) / number)
        assert (found.mean - bound) / error == pytest.approx(sign * 1.6448536, abs=1e-3)


@pytest.mark.parametrize("number", [40, 200])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_a_loss_is_bounded_about_as_often_as_it_says(number: int, loss: float) -> None:
    draw = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        kinds = draw.choice(4, number, p=[0.6, 0.05 + loss, 0.05, 0.3 - loss])
        covered += lost_cases(right(*np.bincount(kinds, minlength=4))).lower <= -loss
    assert covered / 400 > CONFIDENCE - 0.03


def test_a_swap_turns_it_and_what_is_no_case_bounds_nothing() -> None:
    found = lost_cases(right(50, 4, 9, 7))
    turned = lost_cases(right(50, 9, 4, 7))
    assert turned == pytest.approx((-found.mean, -found.upper, -found.lower))
    assert found.lower < found.mean < found.upper and found.mean == pytest.approx(5 / 70)
    for strange in (math.nan, math.inf, 0.5):
        assert all(math.isnan(part) for part in lost_cases(np.array([[1.0, 1.0], [strange, 1.0]])))


@pytest.mark.parametrize("kinds", [(0, 5, 0, 0), (0, 0, 5, 0), (0, 1, 0, 0), (3, 2, 0, 0), (0, 0, 1, 4)])
def test_bounds_are_shares_whatever_happened(kinds: tuple[int, int, int, int]) -> None:
    found = lost_cases(right(*kinds))
    assert -1 <= found.lower <= found.mean <= found.upper <= 1
