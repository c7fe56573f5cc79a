"""A run's figures over time and by tenant, by cases worked out by hand; and stretches of traces."""

from typing import Any

import numpy as np
import pytest

from burrstone.batching.sim.cli.traffic import stretch
from burrstone.batching.sim.report.contenders import contender, timeline, trial
from burrstone.batching.sim.run import Result
from burrstone.batching.sim.traffic.workload_types import Workload


def asked(**columns: Any) -> Workload:
    given: dict[str, Any] = {"arrival_s": [0.0, 0.0], "input_tokens": [100, 100], "output_tokens": [11, 11]}
    return Workload(**(given | columns))


def result(**columns: Any) -> Result:
    """Two requests on an engine that runs one at a time: 0 to 10 s, and 10 to 20 s."""
    given: dict[str, Any] = {
        "arrival_s": [0.0, 0.0],
        "scheduled_s": [0.0, 10.0],
        "first_token_s": [5.0, 15.0],
        "ended_s": [10.0, 20.0],
        "output_tokens": [11, 11],
        "cached_tokens": [0, 50],
        "preemptions": [0, 1],
        "finished": [True, True],
    }
    arrays = {name: np.array(value) for name, value in (given | columns).items()}
    counts = {"makespan_s": 20.0, "busy_s": 20.0, "steps": 22, "num_preemptions": 1}
    return Result(**arrays, **counts, hit_tokens=50, asked_tokens=200, outcome_hash=1, plan_hash=2)  # type: ignore[arg-type]


def at(time_s: float, values: Any, times_s: Any) -> float:
    return float(values[int(np.argmin(np.abs(times_s - time_s)))])


def test_the_timeline_counts_who_waits_who_runs_and_what_they_hold() -> None:
    drawn = timeline(asked(), result(), kv_tokens=200.0)
    assert at(2, drawn.waiting, drawn.time_s) == 1
    assert at(12, drawn.waiting, drawn.time_s) == 0
    assert at(2, drawn.running, drawn.time_s) == at(12, drawn.running, drawn.time_s) == 1
    assert drawn.running[-1] == drawn.waiting[-1] == 0
    # The first fills 100 tokens in five seconds; the second finds 50 of them in the cache.
    assert at(2.5, drawn.kv_share, drawn.time_s) == pytest.approx(50 / 200, abs=0.01)
    assert at(9.9, drawn.kv_share, drawn.time_s) == pytest.approx(111 / 200, abs=0.01)
    assert at(12.5, drawn.kv_share, drawn.time_s) == pytest.approx(75 / 200, abs=0.01)


def test_one_that_never_ran_leaves_the_queue_when_its_client_does() -> None:
    gone = result(scheduled_s=[0.0, -1.0], first_token_s=[5.0, -1.0], ended_s=[10.0, 4.0], finished=[True, False])
    drawn = timeline(asked(), gone, kv_tokens=200.0)
    assert at(3, drawn.waiting, drawn.time_s) == 1
    assert at(6, drawn.waiting, drawn.time_s) == 0


def test_a_contender_is_the_mean_of_its_seeds_and_the_sum_of_their_requests() -> None:
    workload = asked(tenant=[0, 1], ttft_s=[6.0, 6.0])
    trials = [trial(seed, workload, result(), 20.0) for seed in (1, 2)]
    found = contender("fcfs", trials, 20.0, 200.0, ("early", "late"))
    assert found.attainment == 0.5
    assert found.pooled.requests == 4
    assert found.pooled.goodput_per_s == 2 / 40.0
    assert (found.preemptions, found.hit_rate) == (500.0, 0.25)
    assert [t.name for t in found.tenants] == ["early", "late"]
    assert [t.summary.attainment for t in found.tenants] == [1.0, 0.0]


def test_a_stretch_of_a_trace_keeps_programs_whole_and_depends_on_the_seed() -> None:
    size = 100
    after = np.where(np.arange(size) % 2 == 1, np.arange(size) - 1, -1)
    whole = Workload(np.arange(size, dtype=np.float64), np.full(size, 10), np.full(size, 2), after=after)
    parts = [stretch(whole, 20.0, seed) for seed in range(5)]
    for part in parts:
        assert np.count_nonzero(part.after >= 0) * 2 == len(part) == pytest.approx(20, abs=2)
        assert 0 <= part.arrival_s[0] < 2
    assert len({float(part.arrival_s[0]) for part in parts}) > 1
    assert stretch(whole, 200.0, 1) is whole
