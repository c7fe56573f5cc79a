"""New bounds are asked for when the traffic has changed, and not for noise."""

import json

import numpy as np
from numpy.typing import NDArray

from burrstone.batching.shapes.bounds import dp_bounds
from burrstone.batching.shapes.drift import BoundsWatch, DriftRule
from burrstone.batching.shapes.lengths import LengthHistogram

RULE = DriftRule(min_requests=500, half_life_requests=1000, check_every=100)


def lengths_around(tokens: float, seed: int, size: int = 2000) -> NDArray[np.int64]:
    drawn = np.random.default_rng(seed).lognormal(np.log(tokens), 0.5, size)
    return np.clip(drawn, 1, 8192).astype(np.int64)


def watch_of(lengths: NDArray[np.int64]) -> BoundsWatch:
    histogram = LengthHistogram(8192)
    histogram.add(lengths)
    return BoundsWatch(dp_bounds(histogram, 6), RULE)


def test_steady_traffic_asks_for_nothing() -> None:
    watch = watch_of(lengths_around(600, seed=1))
    for part in np.array_split(lengths_around(600, seed=2, size=6000), 60):
        assert watch.observe(part) is None


def test_longer_prompts_ask_for_bounds_that_then_stay() -> None:
    watch = watch_of(lengths_around(600, seed=1))
    asked = [watch.observe(part) for part in np.array_split(lengths_around(2500, seed=2), 20)]
    assert asked[0] is None, "a hundred requests are no evidence"
    bounds = asked[-1]
    assert bounds is not None
    assert bounds[-1] == 8192
    watch.adopt(bounds)
    assert [watch.observe(part) for part in np.array_split(lengths_around(2500, seed=3), 20)] == [None] * 20


def test_a_restart_changes_no_answer() -> None:
    watch = watch_of(lengths_around(600, seed=1))
    for part in np.array_split(lengths_around(2500, seed=2), 20):
        again = BoundsWatch.load(json.loads(json.dumps(watch.save())), RULE)
        assert again.observe(part) == watch.observe(part)
