"""A fleet is its engines: what they do alone they do behind a router, and whoever loses an engine is served by another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.errors import UsageError
from burrstone.batching.routing.memory import new_memory
from burrstone.batching.routing.spec import router_policy
from burrstone.batching.sim.fleet.fleet import Autoscale, Failure, FleetSpec, Stream, _world, simulate_fleet
from burrstone.batching.sim.fleet.kernels import E2E, TTFT
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload import Slo, generate
from burrstone.batching.sim.traffic.workload import Stream as Tenant
from burrstone.batching.sim.traffic.workload_types import Workload

ENGINE = EngineSpec(max_num_seqs=16, num_blocks=1000)


def chats(rate: float, duration_s: float, seed: int = 1) -> Workload:
    return generate([Tenant(rate, slo=Slo(ttft_s=1.0)), Tenant(rate / 2)], duration_s, seed)


def fleet_of(engines: int, router: str = "round-robin", **more: object) -> FleetSpec:
    return FleetSpec(ENGINE, engines, router_policy(router), **more)  # type: ignore[arg-type]


def test_one_engine_behind_a_router_is_that_engine() -> None:
    workload = chats(4.0, 30.0)
    alone, fleet = simulate(ENGINE, workload), simulate_fleet(fleet_of(1), workload)
    for name in ("scheduled_s", "first_token_s", "ended_s", "preemptions"):
        np.testing.assert_array_equal(fleet.outcomes[name], getattr(alone, name))
    assert fleet.makespan_s == alone.makespan_s


def test_in_turn_each_engine_gets_every_third_request() -> None:
    workload = chats(10.0, 20.0)
    fleet = simulate_fleet(fleet_of(3), workload)
    for engine in range(3):
        rows = np.arange(engine, len(workload), 3)
        alone = simulate(ENGINE, workload.take(rows))
        np.testing.assert_array_equal(fleet.outcomes["ended_s"][rows], alone.ended_s)


def test_histograms_tell_the_latencies_within_a_bucket() -> None:
    workload = chats(8.0, 30.0)
    fleet = simulate_fleet(fleet_of(2, "p2c"), workload)
    ttft_s = fleet.outcomes["first_token_s"] - fleet.outcomes["arrival_s"]
    for share in (0.5, 0.99):
        assert fleet.quantile_s(TTFT, share) == pytest.approx(
            float(np.quantile(ttft_s, share, method="inverted_cdf")), rel=0.025
        )
    good = int((ttft_s[workload.tenant == 0] <= 1.0).sum())
    assert fleet.tallies["good"].tolist() == [good, int((workload.tenant == 1).sum())]


@pytest.mark.parametrize("router", ["p2c", "least-load"])
def test_the_less_loaded_engine_is_better_than_the_next_one(router: str) -> None:
    workload = chats(12.0, 30.0)
    blind, seeing = (simulate_fleet(fleet_of(4, name), workload) for name in ("round-robin", router))
    assert seeing.quantile_s(TTFT, 0.9) < blind.quantile_s(TTFT, 0.9)


failures = st.lists(
    st.builds(
        Failure,
        at_s=st.floats(0, 25),
        for_s=st.floats(0, 30),
        engines=st.integers(1, 3),
        first=st.just(0),
    ),
    max_size=3,
)


@given(
    failures=failures,
    router=st.sampled_from(["round-robin", "p2c", "least-load", "session"]),
    autoscale=st.sampled_from([None, Autoscale(4.0, period_s=3.0, start_s=5.0), Autoscale(16.0, least=2, start_s=0.0)]),
    view_period_s=st.sampled_from([0.0, 2.0]),
)
@settings(max_examples=40, deadline=None)
def test_no_request_is_lost(
    failures: list[Failure], router: str, autoscale: Autoscale | None, view_period_s: float
) -> None:
    workload = chats(4.0, 20.0)
    spec = fleet_of(
        3, router, failures=tuple(failures), autoscale=autoscale, view_period_s=view_period_s, rows_per_engine=200
    )
    fleet = simulate_fleet(spec, workload)
    assert fleet.tallies["offered"].sum() == fleet.tallies["finished"].sum() == len(workload)
    assert (fleet.outcomes["ended_s"] >= fleet.outcomes["first_token_s"]).all()
    assert (fleet.outcomes["first_token_s"] > workload.arrival_s).all()
    np.testing.assert_array_equal(fleet.outcomes["output_tokens"], workload.output_tokens)


def test_whoever_was_on_a_lost_engine_begins_again() -> None:
    workload = chats(4.0, 20.0)
    whole = simulate_fleet(fleet_of(2), workload)
    broken = simulate_fleet(fleet_of(2, failures=(Failure(at_s=10.0, for_s=5.0),)), workload)
    assert whole.tallies["moved"].sum() == 0
    assert broken.tallies["moved"].sum() > 0
    before = workload.arrival_s < 1.0
    np.testing.assert_array_equal(broken.outcomes["first_token_s"][before], whole.outcomes["first_token_s"][before])
    assert broken.quantile_s(E2E, 0.9) > whole.quantile_s(E2E, 0.9)


def test_an_engine_that_is_back_at_once_has_lost_what_it_held() -> None:
    workload = chats(4.0, 20.0)
    fleet = simulate_fleet(fleet_of(3, failures=(Failure(at_s=5.0, for_s=0.0, engines=3),)), workload)
    assert fleet.tallies["moved"].sum() > 0
    assert fleet.tallies["finished"].sum() == len(workload)


def test_while_all_engines_are_gone_requests_wait() -> None:
    workload = chats(4.0, 20.0)
    fleet = simulate_fleet(fleet_of(2, failures=(Failure(5.0, 40.0, engines=2),), rows_per_engine=200), workload)
    assert fleet.tallies["finished"].sum() == len(workload)
    late = workload.arrival_s > 6.0
    assert (fleet.outcomes["first_token_s"][late] > 45.0).all()


def test_fewer_engines_cost_less_and_come_when_they_are_needed() -> None:
    workload = chats(4.0, 60.0)
    fixed = simulate_fleet(fleet_of(6), workload)
    scaled = simulate_fleet(fleet_of(6, autoscale=Autoscale(8.0, period_s=5.0, start_s=5.0)), workload)
    assert scaled.mean_engines < fixed.mean_engines == 6
    assert scaled.quantile_s(TTFT, 0.99) > fixed.quantile_s(TTFT, 0.99)


def test_a_stream_is_the_same_for_a_seed_and_near_its_rate() -> None:
    pool = chats(20.0, 20.0)
    one, again, other = (simulate_fleet(fleet_of(40, "p2c"), Stream(pool, 100.0, 20.0, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.histograms, again.histograms)
    assert not np.array_equal(one.histograms, other.histograms)
    assert one.tallies["offered"].sum() == pytest.approx(2000, abs=200)


def test_an_engine_costs_few_bytes() -> None:
    # Ten thousand of them, as target 4 has them, are to fit into 4 GB.
    spec = FleetSpec(EngineSpec("slo", max_num_seqs=64), 100, router_policy("p2c"))
    world = _world(spec, chats(4.0, 5.0))
    arrays = [*world, *world.kv, *new_memory(100, ring=8).sent]
    assert sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) < 100 * 100_000


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"failures": (Failure(0.0, 1.0, engines=3),)}, "beyond the 2"),
        ({"failures": (Failure(-1.0, 1.0),)}, "must be >= 0"),
        ({"rows_per_engine": 0}, "rows_per_engine"),
        ({"router": "min-ttft"}, "min-ttft"),
    ],
)
def test_what_is_not_simulated_is_told(more: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fleet_of(2, **more)  # type: ignore[arg-type]
