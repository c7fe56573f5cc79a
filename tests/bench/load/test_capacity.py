"""The search finds a capacity that is known, in few runs, and takes no luck for capacity."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.bench.load.capacity import CannotShow, find_capacity, lower_bound


@given(st.floats(0.01, 1000), st.floats(0.2, 8))
def test_a_sharp_capacity_is_found_within_five_percent_in_ten_runs(capacity: float, start: float) -> None:
    found = find_capacity(lambda rate: (1000 if rate <= capacity else 500, 1000), capacity * start)
    assert found.sustained <= capacity < found.failed
    assert found.spread <= 0.05 and len(found.tried) <= 10


@given(st.floats(0.02, 100))
def test_a_start_that_is_far_off_costs_few_runs(capacity: float) -> None:
    found = find_capacity(lambda rate: (1000 if rate <= capacity else 500, 1000), 2.0)
    assert found.sustained <= capacity < found.failed
    assert found.spread <= 0.1 and len(found.tried) <= 10


def test_a_rate_that_can_show_nothing_ends_the_search_with_what_was_found() -> None:
    def measure(rate: float) -> tuple[int, int]:
        if rate < 1:
            raise CannotShow("too few requests")
        return 0, 100

    found = find_capacity(measure, 4.0)
    assert (found.sustained, found.ended, [tried.rate for tried in found.tried]) == (
        0.0,
        "too few requests",
        [4.0, 2.0],
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_soft_capacity_is_found_near_where_it_is(seed: int) -> None:
    """Attainment falls from 1 to 0 around a rate of 8, and is 0.9 at 7.4."""
    draw = np.random.default_rng(seed)

    def measure(rate: float) -> tuple[int, int]:
        offered = int(60 * rate)
        return int(draw.binomial(offered, 1 / (1 + math.exp((rate - 8) * 3.5)))), offered

    found = find_capacity(measure, 2.0)
    assert 6.7 < found.sustained < 7.6 and len(found.tried) <= 10


def test_what_is_never_sustained_is_zero_and_what_always_is_has_no_end() -> None:
    nothing = find_capacity(lambda rate: (0, 100), 4.0, most_runs=4)
    assert (nothing.sustained, nothing.failed, nothing.spread) == (0.0, 4 / 64, math.inf)
    everything = find_capacity(lambda rate: (100, 100), 4.0, most_runs=4)
    assert (everything.sustained, everything.failed) == (4 * 64.0, math.inf)


def test_few_good_requests_prove_little() -> None:
    assert lower_bound(10, 10) < 0.9 < lower_bound(100, 100)
    assert lower_bound(0, 0) == lower_bound(0, 50) == pytest.approx(0.0, abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_the_bound_is_a_share_below_what_was_seen(offered: int, data: st.DataObject) -> None:
    good = data.draw(st.integers(0, offered))
    assert -1e-12 <= lower_bound(good, offered) <= good / offered + 1e-12
