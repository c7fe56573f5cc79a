"""How a run's rate goes up and down: arrivals moved along a curve of the relative rate. Bursts, order and texts stay as they are."""

from dataclasses import replace

import numpy as np

from burrstone.batching.sim.traffic.workload_types import Floats, Workload

# Relative rate by share of the run, a line between these points.
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    # As the workload has it: steady for one that is made up, as recorded for a trace.
    "workload": ((0.0, 1.0), (1.0, 1.0)),
    "ramp": ((0.0, 0.0), (1.0, 1.0)),
    # Four times as much in the middle tenth.
    "spike": ((0.0, 1.0), (0.45, 1.0), (0.45, 4.0), (0.55, 4.0), (0.55, 1.0), (1.0, 1.0)),
}
_STEPS = 10_000


def relative_rate(shape: str, share: float) -> float:
    """At this share of the run."""
    shares, rates = zip(*SHAPES[shape], strict=True)
    return float(np.interp(share, shares, rates))


def mean_rate(shape: str) -> float:
    """Over the whole run."""
    return float(_offered(shape)[-1])


def shaped(workload: Workload, shape: str, duration_s: float) -> Workload:
    """The requests of a steady duration_s * mean_rate seconds, moved to come within duration_s by the shape."""
    if shape == "workload":
        return workload
    arrival_s = duration_s * np.interp(workload.arrival_s / duration_s, _offered(shape), np.linspace(0, 1, _STEPS + 1))
    return replace(workload, arrival_s=arrival_s)


def _offered(shape: str) -> Floats:
    """What is offered up to each share of the run, in steady runs."""
    rates = [relative_rate(shape, (step + 0.5) / _STEPS) for step in range(_STEPS)]
    return np.concatenate([[0.0], np.cumsum(rates) / _STEPS])
