"""A step model from recorded requests alone: what was planted comes back, outliers or not."""

import numpy as np
import pytest

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.ahead import simulate_ahead
from burrstone.batching.sim.fit.requests import Simulated, Timings, fit_to_requests, timing_error
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Workload

PLANTED = StepModel(base_s=0.02, prefill_token_s=9e-5, decode_seq_s=2e-4, kv_token_s=2e-7, attention_pair_s=2e-10)
START = StepModel(base_s=0.01, prefill_token_s=5e-5, decode_seq_s=5e-5, kv_token_s=1e-7, attention_pair_s=2e-10)


def load() -> Workload:
    rng = np.random.default_rng(4)
    return Workload(np.cumsum(rng.exponential(0.3, 80)), rng.integers(50, 3000, 80), rng.integers(20, 150, 80))


def simulated(model: StepModel) -> Simulated:
    result = simulate_ahead(EngineSpec(max_num_seqs=16, step_model=model), load())
    tpot_s = (result.last_token_s - result.first_token_s) / (load().output_tokens - 1)
    return Simulated(Timings(result.first_token_s - result.queued_s, tpot_s), result.ttft_parts, result.tpot_parts)


def test_the_first_half_tells_the_second() -> None:
    truth = simulated(PLANTED).timings
    seen = Timings(truth.ttft_s.copy(), truth.tpot_s.copy()).first(40)
    seen.ttft_s[::9] *= 5
    seen.tpot_s[5] = np.nan
    found = fit_to_requests(simulated, seen, START, rounds=60)
    assert found.model.base_s == pytest.approx(PLANTED.base_s, rel=0.1)
    assert found.model.prefill_token_s == pytest.approx(PLANTED.prefill_token_s, rel=0.1)
    again = simulated(found.model).timings
    for ours, theirs in ((again.ttft_s, truth.ttft_s), (again.tpot_s, truth.tpot_s)):
        assert np.median(ours[40:]) == pytest.approx(np.median(theirs[40:]), rel=0.06)
    assert fit_to_requests(simulated, seen, START, rounds=60) == found


def test_an_error_is_relative_and_a_wild_one_is_capped() -> None:
    recorded = Timings(np.array([1.0, 0.01]), np.array([0.1, np.nan]))
    off = Timings(np.array([1.2, 0.02]), np.array([0.11, 7.0]))
    assert timing_error(off, recorded) == pytest.approx((0.2 + 0.2) / 2 + 0.1)
    wild = Timings(np.array([99.0, 0.01]), np.array([0.1, 0.1]))
    assert timing_error(wild, recorded) == pytest.approx(0.25)


def test_no_rounds_and_no_start_are_refused() -> None:
    recorded = simulated(PLANTED).timings
    with pytest.raises(UsageError, match="rounds must be >= 1, got 0"):
        fit_to_requests(simulated, recorded, START, rounds=0)
    with pytest.raises(UsageError, match="the search must start from coefficients above 0"):
        fit_to_requests(simulated, recorded, StepModel(0.01, 0.0, 1e-5, 1e-7, 1e-10))
