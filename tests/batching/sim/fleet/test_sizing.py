"""The smallest fleet is found, with few tries, and its cost is arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.sim.fleet.sizing import Attained, cost_per_million_tokens, fewest, smallest
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Workload


def fleet_that_needs(needed: int, engines: int) -> Attained:
    share = min(1.0, 0.96 * engines / needed) if engines < needed else 0.97
    return Attained(engines, share, share - 0.01, share)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_smallest_is_the_smallest(needed: int, start: int) -> None:
    found, tried = smallest(lambda engines: fleet_that_needs(needed, engines), 0.96, min(start, needed), 10_000)
    assert found is not None
    assert found.engines == needed
    assert [a.engines for a in tried] == sorted({a.engines for a in tried})
    assert len(tried) <= 60


def test_a_fleet_that_is_never_enough_is_none() -> None:
    found, tried = smallest(lambda engines: fleet_that_needs(100, engines), 0.96, 3, 50)
    assert found is None
    assert tried[-1].engines == 50


def test_confidence_is_the_lower_end_of_the_interval_or_the_worst_seed() -> None:
    assert Attained.of(4, [0.9, 1.0]).low == 0.9
    three = Attained.of(4, [0.95, 0.96, 0.97])
    assert three.mean == pytest.approx(0.96)
    assert three.low == pytest.approx(0.96 - 4.303 * 0.01 / math.sqrt(3))
    assert Attained.of(4, [1.0, 1.0, 1.0]).high == 1.0


def test_the_search_starts_where_the_work_fits() -> None:
    model = StepModel(base_s=0.01, prefill_token_s=1e-3, decode_seq_s=0.0, kv_token_s=0.0, attention_pair_s=0.0)
    workload = Workload(np.zeros(100), np.full(100, 500), np.full(100, 100))
    spec = EngineSpec(step_model=model, max_num_seqs=100)
    # 50 s of prefills and 100 * 100 tokens at 0.1 ms: 51 s of work in 10 s.
    assert fewest(spec, workload, duration_s=10.0) == 5


def test_cost() -> None:
    assert cost_per_million_tokens(3.6, 1000.0) == pytest.approx(1.0)
    assert cost_per_million_tokens(3.6, 0.0) == math.inf
