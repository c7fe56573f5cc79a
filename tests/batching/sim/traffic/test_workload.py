"""Made-up workloads have the statistics that they were asked for; mixing and scaling keep what belongs together."""

from itertools import pairwise

import numpy as np
import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.agents import AgentLoad, agent_programs
from burrstone.batching.sim.traffic.arrivals import (
    Fixed,
    LogNormal,
    Observed,
    constant_arrivals,
    gamma_arrivals,
    poisson_arrivals,
    weibull_arrivals,
)
from burrstone.batching.sim.traffic.workload import (
    BATCH,
    INTERACTIVE,
    Stream,
    at_rate,
    at_speed,
    between,
    chat_and_code,
    flood,
    generate,
    merge,
)
from burrstone.batching.sim.traffic.workload_types import Prefixes, Workload


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def gap_cv(arrival_s: np.ndarray) -> float:
    gaps = np.diff(arrival_s)
    return float(gaps.std() / gaps.mean())


def test_poisson_arrivals_have_their_rate_and_spread() -> None:
    arrival_s = poisson_arrivals(rng(), 20.0, 1000.0)
    assert len(arrival_s) == pytest.approx(20_000, rel=0.03)
    assert gap_cv(arrival_s) == pytest.approx(1.0, abs=0.03)
    assert (arrival_s >= 0).all()
    assert (arrival_s < 1000.0).all()


@pytest.mark.parametrize("cv", [0.3, 2.0, 5.0])
def test_gamma_arrivals_burst_as_asked(cv: float) -> None:
    arrival_s = gamma_arrivals(rng(), 50.0, 4000.0, cv=cv)
    assert len(arrival_s) == pytest.approx(200_000, rel=0.05)
    assert gap_cv(arrival_s) == pytest.approx(cv, rel=0.05)


def test_bursts_need_not_begin_at_zero() -> None:
    firsts = [gamma_arrivals(rng(seed), 10.0, 200.0, cv=4.0)[0] for seed in range(200)]
    # The wait for the first arrival is longer than the mean gap where gaps are uneven: (1 + cv^2) / 2 of them.
    assert np.mean(firsts) == pytest.approx(0.1 * 8.5, rel=0.35)


def test_weibull_arrivals_of_shape_one_are_poisson() -> None:
    arrival_s = weibull_arrivals(rng(), 20.0, 1000.0, shape=1.0)
    assert gap_cv(arrival_s) == pytest.approx(1.0, abs=0.03)


def test_constant_arrivals() -> None:
    assert constant_arrivals(4.0, 1.0).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert constant_arrivals(3.0, 1.0) == pytest.approx([0, 1 / 3, 2 / 3])


def test_no_rate_means_no_arrivals() -> None:
    assert len(poisson_arrivals(rng(), 0.0, 100.0)) == 0
    assert len(generate([Stream(0.0), Stream(1.0)], 50.0, seed=0)) > 20


@pytest.mark.parametrize("cv", [0.0, -1.0])
def test_a_spread_that_cannot_be_is_refused(cv: float) -> None:
    with pytest.raises(UsageError, match="cv must be > 0"):
        gamma_arrivals(rng(), 1.0, 1.0, cv=cv)


def test_lengths() -> None:
    drawn = LogNormal.of_percentiles(1020, 4142).draw(rng(), 50_000)
    assert np.percentile(drawn, [50, 99]) == pytest.approx([1020, 4142], rel=0.03)
    assert LogNormal(100, 2.0, most=150).draw(rng(), 1000).max() == 150
    assert LogNormal(1, 2.0).draw(rng(), 1000).min() == 1
    assert Fixed(7).draw(rng(), 3).tolist() == [7, 7, 7]
    observed = Observed(np.array([0, 9]), np.array([1.0, 3.0])).draw(rng(), 4000)
    assert set(observed.tolist()) == {1, 9}
    assert np.mean(observed == 9) == pytest.approx(0.75, abs=0.03)
    with pytest.raises(UsageError, match="percentiles must be 0 < p50 <= p99"):
        LogNormal.of_percentiles(10, 5)


def test_chat_and_code_have_their_terms() -> None:
    workload = chat_and_code(9.0, 4000.0, seed=2)
    chat = workload.tenant == 0
    assert chat.sum() == pytest.approx(6 * 4000, rel=0.03)
    assert (~chat).sum() == pytest.approx(3 * 4000, rel=0.35)
    assert set(workload.ttft_s[chat]) == {INTERACTIVE.ttft_s}
    assert set(workload.tpot_s[chat]) == {INTERACTIVE.tpot_s}
    assert set(workload.e2e_s[~chat]) == {BATCH.e2e_s}
    assert (workload.priority == np.where(chat, 0, 1)).all()
    assert gap_cv(workload.arrival_s[~chat]) > 7


def test_a_flood_comes_from_one_tenant() -> None:
    counts = np.bincount(flood(600.0, seed=0).tenant)
    assert counts == pytest.approx([900, 6000], rel=0.1)


def test_equal_seeds_make_equal_workloads() -> None:
    one, same, other = (chat_and_code(5.0, 100.0, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.arrival_s, same.arrival_s)
    assert np.array_equal(one.input_tokens, same.input_tokens)
    assert len(one) != len(other) or not np.array_equal(one.arrival_s, other.arrival_s)


def test_a_tenant_does_not_change_with_another_ones_rate() -> None:
    quiet = generate([Stream(1.0), Stream(1.0)], 100.0, seed=0)
    loud = generate([Stream(1.0), Stream(9.0)], 100.0, seed=0)
    assert np.array_equal(quiet.arrival_s[quiet.tenant == 0], loud.arrival_s[loud.tenant == 0])


def test_rates_are_scaled() -> None:
    workload = generate([Stream(2.0)], 500.0, seed=0)
    assert at_speed(workload, 4.0).arrival_s == pytest.approx(workload.arrival_s / 4)
    faster = at_rate(workload, 10.0)
    assert len(faster) / faster.arrival_s[-1] == pytest.approx(10.0)
    with pytest.raises(UsageError, match="speed must be > 0"):
        at_speed(workload, 0.0)
    with pytest.raises(UsageError, match="two different times"):
        at_rate(between(workload, 0.0, 0.0), 1.0)


def test_a_part_begins_at_zero() -> None:
    workload = generate([Stream(2.0)], 500.0, seed=0)
    part = between(workload, 100.0, 200.0)
    inside = (workload.arrival_s >= 100.0) & (workload.arrival_s < 200.0)
    assert part.arrival_s == pytest.approx(workload.arrival_s[inside] - 100.0)


def tiny(arrival_s: list[float], *hashes: list[int]) -> Workload:
    """A program of calls at these times."""
    size = len(arrival_s)
    prefixes = Prefixes(
        np.cumsum([0, *map(len, hashes)]), np.array([value for row in hashes for value in row], np.uint64), 16
    )
    return Workload(
        np.array(arrival_s), np.full(size, 40), np.full(size, 2), program=np.zeros(size, np.int64),
        after=np.arange(size) - 1, prefixes=prefixes if hashes else None, tenant_weight=np.array([2.0]),
    )  # fmt: skip


def test_merged_parts_keep_their_programs_tenants_and_prefixes_apart() -> None:
    merged = merge([tiny([0.0, 2.0], [1], [1, 2]), tiny([1.0, 3.0]), tiny([0.5], [1])])
    assert merged.arrival_s.tolist() == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert merged.tenant.tolist() == [0, 2, 1, 0, 1]
    assert merged.program.tolist() == [0, 2, 1, 0, 1]
    assert merged.after.tolist() == [-1, -1, -1, 0, 2]
    assert merged.tenant_weight.tolist() == [2.0, 2.0, 2.0]
    assert merged.prefixes is not None
    assert merged.prefixes.starts.tolist() == [0, 1, 2, 2, 4, 4]
    assert merged.prefixes.hashes.tolist() == [1, 1, 1, 2]


def test_what_cannot_be_merged_is_refused() -> None:
    other = Workload(
        np.zeros(1), np.ones(1, int), np.ones(1, int), prefixes=Prefixes(np.zeros(2, int), np.empty(0, np.uint64), 8)
    )
    with pytest.raises(UsageError, match="blocks of one size"):
        merge([tiny([0.0], [1]), other])
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([])


def test_agent_programs_append_to_their_prompts() -> None:
    workload = agent_programs(AgentLoad(0.5), 800.0, seed=3)
    prefixes = workload.prefixes
    assert prefixes is not None
    turns = np.bincount(workload.program)
    assert len(turns) == pytest.approx(400, rel=0.2)
    assert turns.mean() == pytest.approx(10.0, rel=0.2)
    for row in np.flatnonzero(workload.after >= 0):
        before = workload.after[row]
        assert workload.program[before] == workload.program[row]
        assert workload.turn[before] + 1 == workload.turn[row]
        assert workload.input_tokens[row] > workload.input_tokens[before] + workload.output_tokens[before]
        held = prefixes.hashes[prefixes.starts[before] : prefixes.starts[before + 1]]
        own = prefixes.hashes[prefixes.starts[row] : prefixes.starts[row + 1]]
        assert np.array_equal(own[: len(held)], held)
    assert np.array_equal(workload.after < 0, workload.turn == 0)
    assert (workload.think_s[workload.turn > 0] > 0).all()
    assert np.median(workload.think_s[workload.turn > 0]) == pytest.approx(2.0, rel=0.1)


def test_programs_share_the_system_prompt_and_nothing_else() -> None:
    workload = agent_programs(AgentLoad(0.1, turns=1, system_tokens=64), 200.0, seed=3)
    prefixes = workload.prefixes
    assert prefixes is not None
    rows = [prefixes.hashes[a:b].tolist() for a, b in pairwise(prefixes.starts)]
    assert len(rows) > 5
    for one, other in pairwise(rows):
        assert one[:4] == other[:4]
        assert not set(one[4:]) & set(other)
    assert (workload.after == -1).all()
