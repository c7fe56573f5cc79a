"""Engines that only prefill: hand-worked queues, what a router sees of them, and workloads made to fool min-ttft."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.routing.spec import ROUTER_IDS, RouterKnobs, RouterSpec, router_policy
from burrstone.batching.sim.fleet.prefill_cluster import PrefillCluster, PrefillRun, run_prefill, sustainable_speed
from burrstone.batching.sim.targets.judge import TRACES_ENV
from burrstone.batching.sim.traffic.traces import read_mooncake
from burrstone.batching.sim.traffic.workload_types import Prefixes, Workload

MILLISECOND_A_TOKEN = StepModel(0.0, 0.001, 0.0, 0.0, 0.0)


def cluster(num_engines: int = 2, **settings: float) -> PrefillCluster:
    base = PrefillCluster(num_engines=num_engines, cache_tokens=64, step_tokens=8192, model=MILLISECOND_A_TOKEN)
    return replace(base, **settings)  # type: ignore[arg-type]


def prompts(arrival_s: list[float], tokens: list[int], hashes: list[list[int]] | None = None) -> Workload:
    prefixes = None
    if hashes is not None:
        flat = np.array([value for row in hashes for value in row], np.uint64)
        prefixes = Prefixes(np.cumsum([0, *map(len, hashes)]), flat, 16)
    return Workload(np.array(arrival_s), np.array(tokens), np.ones(len(tokens), int), prefixes=prefixes)


def ttft_s(run: PrefillRun) -> list[float]:
    return [round(float(value), 9) for value in run.routes["ttft_s"]]


def test_prompts_wait_for_those_before_them() -> None:
    workload = prompts([0.0, 0.1, 0.2, 0.3], [1000, 300, 500, 100])
    run = run_prefill(workload, router_policy("round-robin"), cluster())
    assert run.routes["engine"].tolist() == [0, 1, 0, 1]
    assert ttft_s(run) == [1.0, 0.3, 1.3, 0.2]


def test_least_load_sees_what_is_left_to_do() -> None:
    workload = prompts([0.0, 0.1, 0.2, 0.3, 1.05], [1000, 300, 500, 100, 100])
    run = run_prefill(workload, router_policy("least-load"), cluster())
    # At 1.05 s engine 0 has finished, engine 1 at 1.0 s as well; the turn decides.
    assert run.routes["engine"].tolist()[:4] == [0, 1, 1, 1]
    assert ttft_s(run)[:4] == [1.0, 0.3, 0.7, 0.7]


def test_a_speed_compresses_time_and_not_work() -> None:
    workload = prompts([0.0, 2.0], [1000, 1000])
    run = run_prefill(workload, router_policy("round-robin"), cluster(1), speed=4.0)
    assert ttft_s(run) == [1.0, 1.5]


def test_the_last_token_of_a_cached_prompt_is_computed() -> None:
    workload = prompts([0.0, 9.0, 18.0], [48, 48, 40], [[1, 2, 3], [1, 2, 3], [1, 2]])
    run = run_prefill(workload, router_policy("min-ttft"), cluster(1))
    assert run.routes["cached_tokens"].tolist() == [0, 47, 32]
    assert ttft_s(run) == [0.048, 0.001, 0.008]
    assert run.hit_rate(workload) == pytest.approx(79 / 136)


def test_a_hash_past_the_prompt_is_not_the_prompts() -> None:
    workload = prompts([0.0, 9.0], [32, 60], [[1, 2, 3], [1, 2, 3]])
    run = run_prefill(workload, router_policy("min-ttft"), cluster(1))
    assert run.routes["cached_tokens"].tolist() == [0, 32]


def test_engines_evict_what_was_used_longest_ago() -> None:
    one, other = [1, 2, 3], [7, 8]
    workload = prompts([0.0, 9.0, 18.0], [48, 32, 48], [one, other, one])
    run = run_prefill(workload, router_policy("round-robin"), cluster(1))
    assert run.routes["cached_tokens"].tolist() == [0, 0, 32]


def test_hits_without_gain_take_as_long_as_misses() -> None:
    workload = prompts([0.0, 9.0], [48, 48], [[1, 2, 3], [1, 2, 3]])
    run = run_prefill(workload, router_policy("min-ttft"), cluster(1, hit_gain=0.0))
    assert run.routes["cached_tokens"].tolist() == [0, 47]
    assert ttft_s(run) == [0.048, 0.048]


def test_other_routers_dispatches_are_seen_when_the_view_is_old_enough() -> None:
    workload = prompts([i * 0.01 for i in range(40)], [500] * 40)
    fresh = run_prefill(workload, router_policy("least-load"), cluster(4, num_routers=3))
    stale = run_prefill(workload, router_policy("least-load"), cluster(4, num_routers=3, view_delay_s=1.0))
    assert fresh.routes["ttft_s"].mean() < stale.routes["ttft_s"].mean()


def test_a_hopeless_speed_is_given_up_early() -> None:
    workload = prompts([0.001 * i for i in range(100)], [1000] * 100)
    run = run_prefill(workload, router_policy("least-load"), cluster(1), give_up_s=5.0)
    assert np.isinf(run.routes["ttft_s"][50:]).all()
    assert (run.routes["engine"][50:] == -1).all()


def test_the_sustainable_speed_of_even_arrivals_is_the_engines_rate() -> None:
    # One engine, a prompt of 1 s each 2 s: twice the pace is all it can take, a little more before 400 prompts pile up.
    workload = prompts([2.0 * i for i in range(400)], [1000] * 400)
    speed = sustainable_speed(workload, router_policy("least-load"), cluster(1), p90_ttft_s=1.5)
    assert speed == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("name", ROUTER_IDS)
def test_equal_seeds_give_equal_decisions(name: str) -> None:
    workload = families(600, rate=20.0, groups=7)
    one, same, other = (run_prefill(workload, router_policy(name, seed=seed), PrefillCluster(8)) for seed in (1, 1, 2))
    assert one.hash == same.hash
    assert (one.routes == same.routes).all()
    assert (one.hash == other.hash) == (name not in ("p2c", "session"))


def families(size: int, *, rate: float, groups: int, seed: int = 1) -> Workload:
    """Prompts of 16 blocks of 512 tokens, of which the first 12 are those of their group."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, size))
    hashes = np.arange(16 * size, dtype=np.uint64).reshape(size, 16) + np.uint64(1_000_000)
    hashes[:, :12] = rng.integers(groups, size=size)[:, None] * 1000 + np.arange(12)
    starts = np.arange(size + 1) * 16
    return Workload(
        arrival_s, np.full(size, 8193), np.ones(size, int), prefixes=Prefixes(starts, hashes.reshape(-1), 512)
    )


def mean_ttft_s(workload: Workload, spec: RouterSpec, at: PrefillCluster) -> float:
    return float(run_prefill(workload, spec, at).routes["ttft_s"].mean())


def min_ttft(watch: bool) -> RouterSpec:
    return router_policy("min-ttft", knobs=RouterKnobs(watch=watch))


@pytest.mark.parametrize("rate", [15.0, 25.0, 30.0])
def test_min_ttft_is_not_fooled_by_hits_that_gain_nothing(rate: float) -> None:
    """All find their prefix somewhere, and are no faster for it: round-robin is best for equal prompts."""
    fooled = PrefillCluster(hit_gain=0.0)
    workload = families(6000, rate=rate, groups=40)
    turn_s = mean_ttft_s(workload, router_policy("round-robin"), fooled)
    assert mean_ttft_s(workload, min_ttft(watch=False), fooled) > 1.05 * turn_s
    assert mean_ttft_s(workload, min_ttft(watch=True), fooled) < 1.05 * turn_s


def test_min_ttft_does_not_crowd_where_the_shared_prefix_is() -> None:
    workload = families(6000, rate=30.0, groups=1)
    turn_s = mean_ttft_s(workload, router_policy("round-robin"), PrefillCluster())
    assert mean_ttft_s(workload, min_ttft(watch=False), PrefillCluster()) > 1.2 * turn_s
    assert mean_ttft_s(workload, min_ttft(watch=True), PrefillCluster()) < 1.05 * turn_s


def test_where_prefixes_recur_min_ttft_is_faster() -> None:
    workload = families(6000, rate=30.0, groups=40)
    load_s = mean_ttft_s(workload, router_policy("least-load"), PrefillCluster())
    assert mean_ttft_s(workload, min_ttft(watch=True), PrefillCluster()) < 0.9 * load_s


def test_without_reuse_min_ttft_is_least_load() -> None:
    given = families(3000, rate=28.0, groups=1)
    workload = Workload(given.arrival_s, given.input_tokens, given.output_tokens)
    load_s = mean_ttft_s(workload, router_policy("least-load"), PrefillCluster())
    assert mean_ttft_s(workload, min_ttft(watch=True), PrefillCluster()) < 1.05 * load_s


def test_on_mooncakes_trace_it_sustains_what_least_load_does_not() -> None:
    folder = os.environ.get(TRACES_ENV)
    path = Path(folder or "") / "mooncake_conversation_trace.jsonl"
    if not path.is_file():
        pytest.skip(f"needs mooncake_conversation_trace.jsonl in the folder that {TRACES_ENV} names")
    workload = read_mooncake(path)
    within = {
        name: np.mean(run_prefill(workload, router_policy(name), PrefillCluster(), speed=7.8).routes["ttft_s"] <= 5.0)
        for name in ("least-load", "min-ttft")
    }
    assert within["min-ttft"] >= 0.9 > within["least-load"]
