"""Bounds: the dynamic programme is an optimum, nothing is left without a graph, wrong input is told."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import Shapes, bounds_of, dp_bounds, pow2_bounds
from burrstone.batching.shapes.lengths import LengthHistogram


def histogram(lengths: list[int], max_tokens: int, granule_tokens: int) -> LengthHistogram:
    made = LengthHistogram(max_tokens, granule_tokens)
    made.add(np.array(lengths, dtype=np.int64))
    return made


def padded(bounds: tuple[int, ...], lengths: list[int]) -> int:
    return int(bounds_of(bounds, np.array(lengths, dtype=np.int64)).sum())


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    num_bounds=st.integers(1, 4),
    granule_tokens=st.integers(1, 9),
)
def test_dp_bounds_are_as_good_as_the_best_of_all_choices(
    lengths: list[int], num_bounds: int, granule_tokens: int
) -> None:
    bounds = dp_bounds(histogram(lengths, 40, granule_tokens), num_bounds)
    grid = range(granule_tokens, 40, granule_tokens)
    choices = [(*some, 40) for size in range(num_bounds) for some in combinations(grid, size)]
    assert padded(bounds, lengths) == min(padded(choice, lengths) for choice in choices)
    assert len(bounds) <= num_bounds


@settings(deadline=None)
@given(
    seen=st.lists(st.integers(1, 5000), max_size=50),
    later=st.lists(st.integers(1, 5000), min_size=1, max_size=50),
    num_bounds=st.integers(1, 8),
)
def test_every_length_up_to_the_maximum_has_a_bound(seen: list[int], later: list[int], num_bounds: int) -> None:
    bounds = dp_bounds(histogram(seen, 5000, 128), num_bounds)
    assert bounds[-1] == 5000
    shapes = Shapes(bounds)
    assert all(shapes.bound_of(length) >= length for length in later)
    assert list(bounds_of(bounds, np.array(later, dtype=np.int64))) == [shapes.bound_of(length) for length in later]


def test_powers_of_two_end_at_the_maximum() -> None:
    assert pow2_bounds(1024) == (128, 256, 512, 1024)
    assert pow2_bounds(1000) == (128, 256, 512, 1000)
    assert pow2_bounds(100) == (100,)


def test_a_histogram_forgets_and_is_the_same_after_a_restart() -> None:
    kept = histogram([1, 130, 130, 500], 500, 128)
    kept.decay(0.5)
    again = LengthHistogram.load(json.loads(json.dumps(kept.save())))
    lengths, counts = again.steps()
    assert list(lengths) == [128, 256, 500]
    assert list(counts) == [0.5, 1.0, 0.5]
    assert again.total == 2.0


@pytest.mark.parametrize("length", [0, -3, 501])
def test_a_length_that_no_model_takes_is_refused(length: int) -> None:
    with pytest.raises(UsageError, match=rf"must be 1 to max_tokens \(500\), got {length}"):
        histogram([7, length], 500, 128)


def test_what_cannot_be_is_told_with_its_field() -> None:
    with pytest.raises(UsageError, match="num_bounds must be >= 1, got 0"):
        dp_bounds(LengthHistogram(500), 0)
    with pytest.raises(UsageError, match="bounds must be rising numbers"):
        Shapes((128, 128))
    with pytest.raises(UsageError, match="batch_sizes must be rising numbers"):
        Shapes((128,), ())
    with pytest.raises(UsageError, match="bounds end at 128, which does not hold 129"):
        Shapes((128,)).bound_of(129)
    with pytest.raises(UsageError, match="bounds end at 128, which does not hold 129"):
        bounds_of((128,), np.array([129]))
