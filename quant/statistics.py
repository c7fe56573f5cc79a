"""Paired comparison: is the candidate at most so much worse than the reference, with 95 % confidence?

A non-inferiority test asks whether the worst value that the data allow is still within the margin. Bounds are one-sided.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
MIN_ROWS = 8
_RESAMPLES = 10_000
_CHUNK = 500
_BISECTIONS = 60


class Bounded(NamedTuple):
    """A mean with one-sided bounds: with confidence 0.95 each of `lower` and `upper` is exceeded with a chance of 5 %."""

    mean: float
    lower: float
    upper: float


def bounded_mean(values: NDArray[np.float64], confidence: float = CONFIDENCE, seed: int = 0) -> Bounded:
    """values: [rows], one independent observation each; not empty. One row alone bounds nothing.

    Each bound is the farther of two: the bootstrap's over rows (seeded), which follows a skew that the sample shows, and
    Student's t, for with few rows the bootstrap is too narrow.
    """
    number, mean = len(values), float(values.mean())
    if number == 1:
        return Bounded(mean, mean - math.inf, mean + math.inf)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [values[generator.integers(0, number, (_CHUNK, number))].mean(axis=1) for _ in range(_RESAMPLES // _CHUNK)]
    )
    lower, upper = np.quantile(means, [1 - confidence, confidence])
    error = _student(number - 1, confidence) * values.std(ddof=1) / math.sqrt(number)
    return Bounded(mean, float(np.minimum(lower, mean - error)), float(np.maximum(upper, mean + error)))


def lost_cases(right: NDArray[np.float64], confidence: float = CONFIDENCE) -> Bounded:
    """The difference of two paired shares, candidate's less reference's. right: [cases, 2] of 0 and 1, reference first.

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891): cases that all come out alike still leave room
    for a loss of z^2 / (cases + z^2), so that few cases prove little. A case that is neither 0 nor 1 bounds nothing.
    """
    if not np.isin(right, (0.0, 1.0)).all():
        return Bounded(math.nan, math.nan, math.nan)
    lost = int(((right[:, 0] == 1) & (right[:, 1] == 0)).sum())
    gained = int(((right[:, 0] == 0) & (right[:, 1] == 1)).sum())
    number = len(right)
    z = _normal(confidence)
    lower, upper = _least_difference(gained, lost, number, z), -_least_difference(lost, gained, number, z)
    return Bounded((gained - lost) / number, lower, upper)


def _least_difference(gained: int, lost: int, number: int, z: float) -> float:
    """The difference below what was found at which the score is just z."""
    low, high = -1.0, (gained - lost) / number
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(gained, lost, number, middle) > z else (low, middle)
    return low


def _score(gained: int, lost: int, number: int, difference: float) -> float:
    """How many standard errors the found difference lies above `difference`, if that were the true one."""
    # The likeliest chance of a lost case under it: the root of 2 n q^2 + b q + c.
    b = (2 * number - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    chance = (math.sqrt(max(0.0, b * b - 8 * number * c)) - b) / (4 * number)
    variance = number * (2 * chance + difference * (1 - difference))
    return (gained - lost - number * difference) / math.sqrt(max(variance, 1e-12))


def _normal(confidence: float) -> float:
    return NormalDist().inv_cdf(confidence)


def _student(freedom: int, confidence: float) -> float:
    """The quantile of Student's t; good to 0.3 % from 7 degrees on, up to 99.5 % (Abramowitz and Stegun 26.7.5)."""
    z = _normal(confidence)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
