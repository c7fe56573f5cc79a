"""A shape moves arrivals in time: as many as its rate says, in their order."""

import numpy as np
import pytest

from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.swarm.shapes import SHAPES, mean_rate, relative_rate, shaped


def steady(rate: float, duration_s: float) -> Workload:
    arrival_s = np.arange(0, duration_s, 1 / rate, dtype=np.float64)
    return Workload(arrival_s, np.full(len(arrival_s), 5), np.full(len(arrival_s), 5))


@pytest.mark.parametrize(("shape", "mean"), [("workload", 1.0), ("ramp", 0.5), ("spike", 1.3)])
def test_the_mean_of_a_shape(shape: str, mean: float) -> None:
    assert mean_rate(shape) == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_arrive_at_each_moment_as_the_shape_says(shape: str) -> None:
    made = shaped(steady(100, 60 * mean_rate(shape)), shape, 60.0)
    assert np.all(np.diff(made.arrival_s) >= 0) and made.arrival_s[-1] <= 60.0
    for share in (0.2, 0.5, 0.8):
        near = np.abs(made.arrival_s / 60 - share) < 0.02
        assert near.sum() / (60 * 0.04) == pytest.approx(100 * relative_rate(shape, share), rel=0.03)


def test_the_workload_s_own_arrivals_are_left_alone() -> None:
    workload = steady(3, 10)
    assert shaped(workload, "workload", 10.0) is workload
