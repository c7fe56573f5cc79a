"""What a run means to those who asked, by cases worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.batching.sim.measures import (
    fair_shares,
    fairness,
    interval,
    jain,
    latencies,
    program_seconds,
    quantiles,
    summarise,
    tokens_served,
)
from burrstone.batching.sim.traffic.workload_types import Floats, Workload


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def workload(arrival_s: Floats, output_tokens: list[int], **columns: Any) -> Workload:
    tokens = np.array(output_tokens, dtype=np.int64)
    return Workload(arrival_s, np.full(len(tokens), 100), tokens, **columns)


def test_latencies_count_from_arrival_and_an_slo_is_met_only_by_who_finished() -> None:
    asked = workload(floats(0, 0, 0, 0), [11, 11, 1, 11], ttft_s=np.full(4, 1.0), tpot_s=np.full(4, 0.1))
    arrival_s = floats(1, 1, 1, 1)
    finished = np.array([True, True, True, False])
    found = latencies(asked, arrival_s, floats(2, 2.5, 1.5, 2), floats(3, 3, 1.5, 2.1), finished)
    assert found.ttft_s.tolist() == [1, 1.5, 0.5, 1]
    assert found.e2e_s.tolist() == [2, 2, 0.5, math.inf]
    assert found.tpot_s[:2].tolist() == [0.1, 0.05]
    assert math.isnan(found.tpot_s[2]), "an answer of one token has no pace"
    # In time; first token late; one token, in time; never finished.
    assert found.good.tolist() == [True, False, True, False]


def test_what_never_began_is_infinitely_late() -> None:
    asked = workload(floats(0), [5])
    found = latencies(asked, floats(0), floats(-1), floats(-1), np.array([False]))
    assert found.ttft_s[0] == found.e2e_s[0] == math.inf
    assert not found.good[0]


def test_attainment_counts_everybody_who_was_offered() -> None:
    asked = workload(floats(0, 1, 2, 3), [10, 10, 10, 10], ttft_s=np.full(4, 1.0))
    finished = np.array([True, True, True, False])
    found = latencies(asked, asked.arrival_s, floats(0.5, 1.5, 9, -1), floats(2, 3, 12, 4), finished)
    summary = summarise(asked, found, duration_s=10.0)
    assert (summary.requests, summary.attainment, summary.goodput_per_s) == (4, 0.5, 0.2)
    assert summary.output_tokens_per_s == 3.0
    assert summary.ttft_s == (0.5, math.inf, math.inf)
    only_last = summarise(asked, found, 10.0, np.array([False, False, False, True]))
    assert (only_last.requests, only_last.attainment) == (1, 0.0)


def test_a_program_takes_from_its_first_call_to_its_last_token() -> None:
    asked = workload(floats(0, 0, 1, 2), [2, 2, 2, 2], program=np.array([0, -1, 0, 5]))
    arrival_s = floats(0, 0, 6, 2)
    finished = np.array([True, True, True, False])
    found = latencies(asked, arrival_s, floats(1, 1, 7, -1), floats(5, 9, 10, -1), finished)
    assert program_seconds(asked, arrival_s, found).tolist() == [10, math.inf]


def test_quantiles_are_values_that_occurred() -> None:
    assert quantiles(np.arange(1, 101).astype(np.float64)) == (50.0, 90.0, 99.0)
    assert quantiles(floats(3, np.nan, 1)) == (1.0, 3.0, 3.0)
    assert all(math.isnan(value) for value in quantiles(floats(np.nan)))


def test_jain() -> None:
    assert jain(floats(2, 2, 2)) == 1.0
    assert jain(floats(1, 0, 0, 0)) == 0.25
    assert jain(floats(0, 0)) == 1.0


def test_the_fair_share_is_what_was_asked_or_as_much_as_anyone_by_weight() -> None:
    assert fair_shares(floats(10, 100, 100), np.ones(3), 90.0).tolist() == [10, 40, 40]
    assert fair_shares(floats(100, 100), floats(3, 1), 80.0).tolist() == [60, 20]
    assert fair_shares(floats(0, 5), np.ones(2), 5.0).tolist() == [0, 5]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.1, 10)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_fair_shares_give_out_everything_and_no_more_than_asked(
    tenants: list[tuple[float, float]], served_share: float
) -> None:
    asked, weight = (np.array(column) for column in zip(*tenants, strict=True))
    served = float(asked.sum()) * served_share
    shares = fair_shares(asked, weight, served)
    assert (shares <= asked * (1 + 1e-9)).all()
    assert shares.sum() == pytest.approx(served, rel=1e-6, abs=1e-6)
    # Whoever got less than asked got as much, by weight, as anyone.
    short = asked - shares > 1e-6 * np.maximum(asked, 1)
    if short.any():
        assert (shares / weight <= (shares / weight)[short].min() * (1 + 1e-6) + 1e-6).all()


def test_fairness_blames_the_flood_and_not_who_asks_little() -> None:
    tenant, weight = np.array([0, 1]), np.ones(2)
    asked = floats(10, 190)
    even, _ = fairness(floats(10, 90), asked, tenant, weight)
    crowded_out, by_tenant = fairness(floats(5, 95), asked, tenant, weight)
    assert even == 1.0
    assert crowded_out < even
    assert by_tenant.tolist() == [5, 95]


def test_outputs_are_served_evenly_between_the_first_and_the_last_token() -> None:
    asked = workload(floats(0, 0, 0), [10, 10, 10])
    finished = np.ones(3, np.bool_)
    found = latencies(asked, asked.arrival_s, floats(1, 4, 9), floats(3, 8, 12), finished)
    assert tokens_served(asked, found, asked.arrival_s, until_s=6.0).tolist() == [110, 105, 0]


def test_an_interval_needs_three_seeds() -> None:
    mean, half = interval(floats(1, 2))
    assert mean == 1.5
    assert math.isnan(half)
    mean, half = interval(floats(1, 2, 3))
    assert (mean, round(half, 3)) == (2.0, 2.484)  # 4.303 / sqrt(3)
