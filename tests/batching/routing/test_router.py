"""Routers: always a live engine, equal seeds equal choices, a restart changes nothing; and what each policy promises."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.errors import NotReady
from burrstone.batching.routing.probes import candidate_engines, p2c_probes, session_engine
from burrstone.batching.routing.router import Route, Router, RouteRequest
from burrstone.batching.routing.spec import ROUTER_IDS, RouterKnobs, router_policy
from burrstone.batching.routing.views import new_views

NUM_ENGINES = 5


def router(name: str, seed: int = 3, num_engines: int = NUM_ENGINES, **knobs: float) -> Router:
    spec = router_policy(name, seed=seed, knobs=RouterKnobs(**knobs))  # type: ignore[arg-type]
    return Router(spec, num_engines, DEFAULT_STEP_MODEL, step_tokens=2048, index_blocks=32)


def prompt(tokens: int, session: int = -1, family: int = 0) -> RouteRequest:
    """Prompts of a family begin alike."""
    hashes = np.arange(tokens // 16, dtype=np.uint64) + np.uint64(family * 1_000_000)
    return RouteRequest(tokens, session, hashes)


def serve(at: Router, request: RouteRequest, views: np.ndarray, now_s: float) -> Route:
    route = at.choose(request, views, now_s)
    at.on_dispatch(request, route, now_s)
    at.on_first_token(route, 0.1 + 1e-4 * (request.prompt_tokens - route.claimed_tokens), route.claimed_tokens)
    return route


LIFE = st.lists(
    st.tuples(
        st.lists(st.booleans(), min_size=NUM_ENGINES, max_size=NUM_ENGINES),  # alive
        st.lists(st.integers(0, 50_000), min_size=NUM_ENGINES, max_size=NUM_ENGINES),  # queued
        st.floats(0, 5),  # age
        st.integers(-1, 3),  # session
        st.integers(1, 3000),  # prompt
    ),
    min_size=1,
    max_size=25,
)
Life = list[tuple[list[bool], list[int], float, int, int]]


def routes(at: Router, life: Life, start: int = 0) -> list[int | None]:
    """The engines chosen in a life; None where none was alive."""
    chosen: list[int | None] = []
    for step, (alive, queued, age_s, session, tokens) in enumerate(life, start=start):
        views = new_views(NUM_ENGINES)
        views["alive"], views["queued_prefill_tokens"], views["age_s"] = alive, queued, age_s
        try:
            chosen.append(serve(at, prompt(tokens, session, family=session + 1), views, float(step)).engine)
        except NotReady:
            chosen.append(None)
    return chosen


@pytest.mark.parametrize("name", ROUTER_IDS)
@settings(deadline=None, max_examples=30)
@given(life=LIFE)
def test_it_is_always_a_live_engine(name: str, life: Life) -> None:
    for engine, (alive, *_) in zip(routes(router(name), life), life, strict=True):
        assert (engine is None) == (not any(alive))
        assert engine is None or alive[engine]


@pytest.mark.parametrize("name", ROUTER_IDS)
@settings(deadline=None, max_examples=30)
@given(life=LIFE, cut=st.integers(0, 25))
def test_equal_seeds_choose_alike_and_a_restart_changes_nothing(name: str, life: Life, cut: int) -> None:
    one, other = router(name), router(name)
    assert routes(one, life[:cut]) == routes(other, life[:cut])
    restarted = router(name)
    restarted.load(other.save())
    assert routes(one, life[cut:], cut) == routes(restarted, life[cut:], cut)
    assert one.hash == restarted.hash


def test_state_of_another_policy_or_fleet_is_refused() -> None:
    with pytest.raises(ValueError, match="of policy 'p2c', this is 'session'"):
        router("session").load(router("p2c").save())
    with pytest.raises(ValueError, match="another number of engines"):
        router("p2c").load(router("p2c", num_engines=6).save())


def test_round_robin_goes_round_and_passes_over_the_dead() -> None:
    views = new_views(4)
    views["alive"] = [1, 0, 1, 1]
    at = router("round-robin", num_engines=4)
    assert [serve(at, prompt(100), views, 0.0).engine for _ in range(6)] == [0, 2, 3, 0, 2, 3]


def test_least_load_counts_what_it_has_sent_since_the_report() -> None:
    views = new_views(3)
    views["queued_prefill_tokens"] = [3000, 0, 1500]
    views["age_s"] = 0.01
    at = router("least-load", num_engines=3)
    assert [at.choose(prompt(1), views, 1.0).engine] == [1]
    chosen = [serve(at, RouteRequest(1000), views, 1.0).engine for _ in range(4)]
    assert chosen == [1, 1, 2, 1]


def test_among_idle_engines_the_one_with_fewer_decodes_is_less_loaded() -> None:
    views = new_views(3)
    views["running"] = [20, 5, 40]
    assert router("least-load", num_engines=3).choose(prompt(100), views, 0.0).engine == 1


@settings(deadline=None, max_examples=60)
@given(queued=st.lists(st.integers(0, 50_000), min_size=4, max_size=4, unique=True), number=st.integers(0, 50))
def test_p2c_takes_the_less_loaded_of_its_two_probes(queued: list[int], number: int) -> None:
    views = new_views(4)
    views["queued_prefill_tokens"] = queued
    at = router("p2c", num_engines=4)
    for _ in range(number):
        at.choose(prompt(10), views, 0.0)
    probes = p2c_probes(np.uint64(3), np.uint64(number), views)
    assert probes[0] != probes[1]
    assert at.choose(prompt(10), views, 0.0).engine == min(probes, key=lambda engine: queued[engine])


def test_p2c_probes_reach_every_engine_about_as_often() -> None:
    views = new_views(8)
    counts = np.zeros(8)
    for number in range(4000):
        counts[list(p2c_probes(np.uint64(1), np.uint64(number), views))] += 1
    assert counts.min() > 0.85 * 1000
    assert counts.max() < 1.15 * 1000


def test_a_session_stays_while_its_engine_lives_and_moves_when_it_dies() -> None:
    at = router("session")
    views = new_views(NUM_ENGINES)
    homes = {session: serve(at, prompt(100, session), views, 0.0).engine for session in range(40)}
    assert len(set(homes.values())) == NUM_ENGINES
    views["queued_prefill_tokens"] = np.arange(NUM_ENGINES) * 10_000
    assert all(serve(at, prompt(900, session), views, 1.0).engine == home for session, home in homes.items())
    views["alive"][2] = 0
    for session, home in homes.items():
        moved = serve(at, prompt(100, session), views, 2.0).engine
        assert (moved != 2) if home == 2 else (moved == home)


def test_sessions_spread_evenly() -> None:
    views = new_views(8)
    counts = np.bincount([session_engine(np.uint64(0), session, views) for session in range(4000)], minlength=8)
    assert counts.min() > 0.8 * 500
    assert counts.max() < 1.2 * 500


def test_min_ttft_follows_the_prefix_until_the_queue_costs_more() -> None:
    at = router("min-ttft", work_weight=1)
    views = new_views(NUM_ENGINES)
    home = serve(at, prompt(500), views, 0.0).engine
    views["queued_prefill_tokens"][home] = 100
    route = at.choose(prompt(500), views, 10.0)
    assert (route.engine, route.claimed_tokens) == (home, 496)
    views["queued_prefill_tokens"][home] = 3000
    assert at.choose(prompt(500), views, 10.0).engine != home


def test_min_ttft_forgets_what_an_engine_had_when_it_died() -> None:
    at = router("min-ttft")
    views = new_views(NUM_ENGINES)
    home = serve(at, prompt(500), views, 0.0).engine
    at.on_engine_lost(home)
    views["queued_prefill_tokens"][home] = 1
    assert at.choose(prompt(500), views, 10.0).engine != home


def test_min_ttft_avoids_an_engine_whose_kv_cache_is_full() -> None:
    views = new_views(2)
    views["free_tokens"][0] = 400
    views["queued_prefill_tokens"][1] = 2000
    assert router("min-ttft", num_engines=2).choose(prompt(500), views, 0.0).engine == 1
    assert router("min-ttft", num_engines=2).choose(prompt(300), views, 0.0).engine == 0


def test_of_two_equal_views_the_younger_is_preferred() -> None:
    views = new_views(2)
    views["queued_prefill_tokens"] = 40_000
    views["age_s"] = [0.02, 0.0]
    # The older one has worked since it reported, which counts for it; not knowing more counts against it.
    assert router("min-ttft", num_engines=2, staleness_weight=2).choose(prompt(500), views, 0.0).engine == 1


def test_in_a_large_fleet_the_next_turn_finds_the_engine_of_the_last() -> None:
    at = router("min-ttft", num_engines=500, max_probes=16)
    views = new_views(500)
    found = 0
    for family in range(60):
        first = serve(at, prompt(320, family=family), views, float(family)).engine
        found += serve(at, prompt(400, family=family), views, family + 0.5).engine == first
    # But for trials.
    assert found > 45


def test_candidates_hold_no_dead_engine() -> None:
    views = new_views(300)
    views["alive"][::2] = 0
    policy = router_policy("min-ttft").record()
    candidates = candidate_engines(policy, views, 1, np.arange(9, dtype=np.uint64), np.uint64(7))
    assert len(candidates) == 64
    assert views["alive"][candidates].all()


PLAIN = """
import numpy as np
from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.routing.router import Router, RouteRequest
from burrstone.batching.routing.spec import ROUTER_IDS, router_policy
from burrstone.batching.routing.views import new_views
for name in ROUTER_IDS:
    for num_engines in (3, 80):
        router = Router(router_policy(name), num_engines, DEFAULT_STEP_MODEL, step_tokens=512, index_blocks=8)
        views = new_views(num_engines)
        views["queued_prefill_tokens"] = np.arange(num_engines) * 37 % 1000
        views["age_s"] = 0.1
        for step in range(40):
            request = RouteRequest(300, step % 4, np.arange(18, dtype=np.uint64) + np.uint64(step % 4 * 10))
            route = router.choose(request, views, 0.01 * step)
            router.on_dispatch(request, route, 0.01 * step)
            router.on_first_token(route, 0.1 + 0.01 * (step % 7), route.claimed_tokens // 2)
        print(name, router.hash)
"""


def test_compiled_and_plain_kernels_decide_alike() -> None:
    def hashes(disable_jit: str) -> str:
        env = os.environ | {"NUMBA_DISABLE_JIT": disable_jit}
        # Plain integers of NumPy warn where the compiled ones wrap.
        command = [sys.executable, "-W", "ignore:overflow:RuntimeWarning", "-c", PLAIN]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=300).stdout

    plain = hashes("1")
    assert plain == hashes("0")
    assert len(plain.splitlines()) == 2 * len(ROUTER_IDS)
