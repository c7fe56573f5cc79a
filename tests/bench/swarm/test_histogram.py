"""Quantiles are within the error that is promised, and parts make the same whole."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.bench.swarm.histogram import LEAST_S, RELATIVE_ERROR, Histogram

VALUES = st.lists(st.floats(0, 1e5, allow_nan=False), min_size=1, max_size=60)


def of(values_s: list[float]) -> Histogram:
    made = Histogram()
    for value_s in values_s:
        made.add(value_s)
    return made


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_its_error(values_s: list[float], share: float) -> None:
    exact = sorted(values_s)[max(0, int(np.ceil(share * len(values_s))) - 1)]
    found = of(values_s).quantile(share)
    assert found == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-9, abs=LEAST_S)


@given(VALUES, VALUES)
def test_parts_merged_are_the_whole(one_s: list[float], two_s: list[float]) -> None:
    merged = of(one_s)
    merged.merge(of(two_s))
    whole = of(one_s + two_s)
    assert (merged.buckets, merged.count) == (whole.buckets, whole.count)
    assert merged.mean == pytest.approx(np.mean(one_s + two_s))


@given(VALUES, VALUES, st.floats(0, 1))
def test_what_came_since_is_what_was_added(earlier_s: list[float], later_s: list[float], share: float) -> None:
    since = of(earlier_s + later_s).since(of(earlier_s))
    assert since.count == len(later_s)
    assert since.quantile(share) == of(later_s).quantile(share)


@given(VALUES)
def test_it_goes_through_json(values_s: list[float]) -> None:
    made = of(values_s)
    assert Histogram.of_json(json.loads(json.dumps(made.as_json()))) == made


def test_without_values_there_is_no_figure() -> None:
    assert Histogram().quantile(0.5) is None and Histogram().mean is None


def test_counts_are_as_good_as_repetition() -> None:
    counted = Histogram()
    counted.add(0.25, 3)
    assert counted == of([0.25] * 3)
