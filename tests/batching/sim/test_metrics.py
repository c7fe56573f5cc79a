"""Latencies and attainment of a run small enough to work out by hand."""

import numpy as np
import pytest

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.sim.metrics import e2e_s, met, percentiles, summarize, tpot_s, ttft_s
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.workload_types import Workload

# Every step takes one second.
SPEC = EngineSpec(max_num_seqs=1, step_model=StepModel(1.0, 0.0, 0.0, 0.0, 0.0))


def test_a_run_by_hand() -> None:
    workload = Workload(
        np.array([0.0, 0.0, 0.5, 20.0]),
        np.array([8, 8, 8, 8]),
        np.array([3, 1, 5, 3]),
        ttft_s=np.array([1.0, 3.5, np.inf, np.inf]),
        tpot_s=np.array([1.0, 0.1, np.inf, 0.5]),
        cancel_s=np.array([np.inf, np.inf, 4.0, np.inf]),
    )
    result = simulate(SPEC, workload)
    assert ttft_s(result).tolist() == [1.0, 4.0, pytest.approx(4.5), 1.0]
    np.testing.assert_array_equal(e2e_s(result), [3.0, 4.0, np.nan, 3.0])
    np.testing.assert_array_equal(tpot_s(result), [1.0, np.nan, np.nan, 1.0])
    # Late by its first token, cancelled, late by its pace.
    assert met(workload, result).tolist() == [True, False, False, False]
    summary = summarize(workload, result)
    assert summary.attainment == 0.25
    assert summary.goodput_per_s == pytest.approx(1 / 23)
    assert summary.requests_per_s == pytest.approx(3 / 23)
    assert summary.queue.p50_s == pytest.approx(1.5)


def test_nothing_measured_is_nan() -> None:
    assert np.isnan(percentiles(np.array([np.nan])).p99_s)
