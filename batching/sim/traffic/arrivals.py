"""Random arrivals and lengths, from a seeded generator."""

from collections.abc import Callable
from dataclasses import dataclass
from math import gamma as gamma_function
from typing import Protocol, Self

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.workload_types import Floats, Ints

_Z99 = 2.3263478740408408  # the normal distribution's 99th percentile


class Lengths(Protocol):
    """A distribution of lengths in tokens."""

    def draw(self, rng: np.random.Generator, size: int) -> Ints:
        """[size] lengths >= 1."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    tokens: int

    def draw(self, rng: np.random.Generator, size: int) -> Ints:
        return np.full(size, self.tokens, np.int64)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Log-normal, by its median and the sigma of its logarithm, cut at 1 and `most`."""

    median: float
    sigma: float
    most: int = 1 << 20

    @classmethod
    def of_percentiles(cls, p50: float, p99: float, most: int = 1 << 20) -> Self:
        """The one with these percentiles. Raises UsageError unless 0 < p50 <= p99."""
        if not 0 < p50 <= p99:
            raise UsageError(f"lengths: percentiles must be 0 < p50 <= p99, got {p50} and {p99}")
        return cls(p50, float(np.log(p99 / p50)) / _Z99, most)

    def draw(self, rng: np.random.Generator, size: int) -> Ints:
        drawn = self.median * np.exp(self.sigma * rng.standard_normal(size))
        return np.clip(np.rint(drawn), 1, self.most).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Observed:
    """Lengths as they occurred, each as likely as its weight."""

    tokens: Ints
    weights: Floats

    def draw(self, rng: np.random.Generator, size: int) -> Ints:
        drawn = rng.choice(self.tokens, size, p=self.weights / self.weights.sum())
        return np.maximum(drawn, 1).astype(np.int64)


def poisson_arrivals(rng: np.random.Generator, rate: float, duration_s: float) -> Floats:
    """Times in [0, duration_s) at `rate` requests a second."""
    return gamma_arrivals(rng, rate, duration_s, cv=1.0)


def constant_arrivals(rate: float, duration_s: float) -> Floats:
    """Times in [0, duration_s), 1 / rate apart."""
    return np.arange(max(0, int(np.ceil(duration_s * rate - 1e-9)))) / rate


def gamma_arrivals(rng: np.random.Generator, rate: float, duration_s: float, *, cv: float) -> Floats:
    """As `poisson_arrivals`, with gaps whose standard deviation is cv times their mean: bursts where cv > 1."""
    if cv <= 0:
        raise UsageError(f"arrivals: cv must be > 0, got {cv}; for even gaps take constant arrivals")
    shape = 1.0 / cv**2
    return _renewals(lambda size: rng.gamma(shape, 1.0 / shape, size), cv, rate, duration_s)


def weibull_arrivals(rng: np.random.Generator, rate: float, duration_s: float, *, shape: float) -> Floats:
    """As `poisson_arrivals`, with Weibull gaps: bursts where shape < 1."""
    if shape <= 0:
        raise UsageError(f"arrivals: a Weibull shape must be > 0, got {shape}")
    mean = gamma_function(1.0 + 1.0 / shape)
    cv = float(np.sqrt(max(gamma_function(1.0 + 2.0 / shape) / mean**2 - 1.0, 0.0)))
    return _renewals(lambda size: rng.weibull(shape, size) / mean, cv, rate, duration_s)


def _renewals(draw_gaps: Callable[[int], Floats], cv: float, rate: float, duration_s: float) -> Floats:
    """Arrivals with such gaps, of mean 1 / rate, from a start well before 0: at 0 no burst need begin."""
    if rate < 0 or duration_s < 0:
        raise UsageError(f"arrivals: rate and duration_s must be >= 0, got {rate} and {duration_s}")
    if rate == 0 or duration_s == 0:
        return np.empty(0)
    time_s = -(10.0 + 10.0 * cv**2) / rate
    found = []
    while time_s < duration_s:
        size = int(min(1.1 * rate * (duration_s - time_s) + 64, 1 << 20))
        times_s = time_s + np.cumsum(draw_gaps(size)) / rate
        time_s = float(times_s[-1])
        found.append(times_s[(times_s >= 0) & (times_s < duration_s)])
    return np.concatenate(found)
