"""How long a failure is felt."""

import numpy as np

from burrstone.batching.sim.run import Result


def recovery_s(result: Result, at_s: float) -> float:
    """Seconds from at_s until no more requests wait for their first token than ever did before; 0 where it is not felt,
    infinite where the queue stays longer to the end."""
    came = result.first_token_s >= 0
    times = np.concatenate([result.arrival_s[came], result.first_token_s[came]])
    changes = np.repeat([1, -1], int(came.sum()))
    order = np.argsort(times, kind="stable")
    times, waiting = times[order], np.cumsum(changes[order])
    before, after = waiting[times < at_s], waiting[times >= at_s]
    usual = int(before.max()) if len(before) else 0
    if not len(after) or after.max() <= usual:
        return 0.0
    peak = int(np.argmax(after))
    back = np.flatnonzero(after[peak:] <= usual)
    return float(times[times >= at_s][peak + back[0]] - at_s) if len(back) else float("inf")
