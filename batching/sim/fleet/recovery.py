"""How long a failure is felt."""

import numpy as np

from burrstone.batching.sim.run import Result
from burrstone.batching.sim.traffic.workload_types import Floats, Ints


def recovery_s(broken: Result, whole: Result, at_s: float, until_s: float) -> float:
    """Seconds from at_s, when engines failed, until no more requests wait for their first token than ever do without the
    failure: `whole` is the same traffic on engines that did not fail. 0 where that is never exceeded, infinite where it
    still is at until_s, the next failure or the end of the traffic.

    A request that lost its engine waits, until it has its first token again.
    """
    usual = int(_waiting(whole)[1].max(initial=0))
    times, waiting = _waiting(broken)
    felt = (times >= at_s) & (times < until_s)
    times, waiting = times[felt], waiting[felt]
    if waiting.max(initial=0) <= usual:
        return 0.0
    peak = int(np.argmax(waiting))
    back = np.flatnonzero(waiting[peak:] <= usual)
    return float(times[peak + back[0]] - at_s) if len(back) else float("inf")


def _waiting(result: Result) -> tuple[Floats, Ints]:
    """When the number of requests without a first token changes, and what it is from then on."""
    came = result.first_token_s >= 0
    times = np.concatenate([result.arrival_s[came], result.first_token_s[came]])
    changes = np.repeat(np.array([1, -1]), int(came.sum()))
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(changes[order])
