"""The highest rate that a server sustains within its SLOs: bracket it, then halve the bracket.

A rate is sustained when the lower end of the 95 % interval of its attainment is at least what is asked for, so that luck
with few requests is no capacity. Runs are costly: ten are to be enough for 5 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.95)
_STEP = 2.0


@dataclass(frozen=True, slots=True)
class Tried:
    """One run: `good` of `offered` requests met their SLOs at `rate` requests a second."""

    rate: float
    good: int
    offered: int
    sustained: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """sustained: the highest rate that was sustained, 0 for none. failed: the lowest above it that was not, infinite for
    none. `tried`: all runs in their order. `ended`: why the search could not go on."""

    sustained: float
    failed: float
    tried: list[Tried] = field(default_factory=list)
    ended: str | None = None

    @property
    def spread(self) -> float:
        """How much higher, relatively, the capacity might be."""
        return self.failed / self.sustained - 1 if self.sustained else math.inf


class CannotShow(Exception):
    """A rate at which no run could show the attainment; the message says why. Ends the search."""


def find_capacity(
    measure: Callable[[float], tuple[int, int]],
    start_rate: float,
    *,
    attainment: float = 0.9,
    within: float = 0.05,
    most_runs: int = 10,
) -> Capacity:
    """measure(rate) offers a run at that rate and returns (good, offered), or raises CannotShow."""
    low, high, step = 0.0, math.inf, _STEP
    rate, tried, ended = start_rate, list[Tried](), None
    while len(tried) < most_runs and not (low and high / low - 1 <= within):
        try:
            good, offered = measure(rate)
        except CannotShow as reason:
            ended = str(reason)
            break
        sustained = lower_bound(good, offered) >= attainment
        tried.append(Tried(rate, good, offered, sustained))
        if sustained:
            low = max(low, rate)
        else:
            high = min(high, rate)
        if low and not math.isinf(high):
            rate = math.sqrt(low * high)
        else:
            rate = low * step if low else high / step
            # Ever longer steps, so that a start that is far off costs few runs.
            step *= _STEP
    return Capacity(low, high, tried, ended)


def lower_bound(good: int, offered: int) -> float:
    """Wilson's one-sided 95 % lower bound of a share (Wilson 1927)."""
    if offered == 0:
        return 0.0
    share, room = good / offered, _Z * _Z / offered
    middle = share + room / 2
    half = _Z * math.sqrt(share * (1 - share) / offered + room / (4 * offered))
    return (middle - half) / (1 + room)
