"""One-sided bounds that mean what they say."""

import numpy as np

from burrstone.quant.statistics import CONFIDENCE, bounded_mean


def test_each_bound_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    above = below = 0
    for _ in range(200):
        found = bounded_mean(draw.normal(1.0, 2.0, 64))
        assert found.lower < found.mean < found.upper
        above, below = above + (found.upper >= 1.0), below + (found.lower <= 1.0)
    for covered in (above, below):
        assert abs(covered / 200 - CONFIDENCE) < 0.045


def test_more_rows_narrow_it_and_the_same_rows_give_the_same() -> None:
    values = np.random.default_rng(0).normal(size=400)
    few, many = bounded_mean(values[:25]), bounded_mean(values)
    assert many.upper - many.lower < 0.5 * (few.upper - few.lower)
    assert bounded_mean(values) == many


def test_values_that_are_all_alike_leave_no_doubt() -> None:
    assert tuple(bounded_mean(np.full(9, 0.25))) == (0.25, 0.25, 0.25)
