"""Paired comparison: is the candidate at most so much worse than the reference, with 95 % confidence?

A non-inferiority test asks whether the worst value that the data allow is still within the margin. With few rows the bootstrap is
narrower than it should be. Bounds are by bootstrap over rows (tokens within a row depend on each other), seeded.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
MIN_ROWS = 8
_RESAMPLES = 10_000
_CHUNK = 500


class Bounded(NamedTuple):
    """A mean with one-sided 95 % bounds: each of `lower` and `upper` is exceeded with a chance of 5 %."""

    mean: float
    lower: float
    upper: float


def bounded_mean(values: NDArray[np.float64], seed: int = 0) -> Bounded:
    """values: [rows], one independent observation each; not empty."""
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), (_CHUNK, len(values)))].mean(axis=1)
            for _ in range(_RESAMPLES // _CHUNK)
        ]
    )
    lower, upper = np.quantile(means, [1 - CONFIDENCE, CONFIDENCE])
    return Bounded(float(values.mean()), float(lower), float(upper))
