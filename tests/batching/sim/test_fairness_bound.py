"""The service gap of backlogged tenants stays within the bound of the paper under vtc, and does not under fcfs."""

import pytest

from burrstone.batching.policies import engine_policy
from burrstone.batching.sim.fairness_bound import random_load, widest_gap


@pytest.mark.parametrize("seed", range(25))
def test_vtc_keeps_the_gap_within_the_bound(seed: int) -> None:
    gap, bound = widest_gap(random_load(seed))
    assert 0 < gap <= bound


def test_first_come_first_served_does_not() -> None:
    gaps = [widest_gap(random_load(seed), "fcfs") for seed in range(25)]
    assert any(gap > bound for gap, bound in gaps)


def test_a_counter_that_keeps_credit_breaks_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds the loads to their purpose: without the lift, a tenant that idled would be caught."""

    class Unlifted(engine_policy.EnginePolicy):
        def add(self, arrival: engine_policy.Arrival, now_s: float) -> int:
            self._make_room_for_tenant(arrival.tenant)
            before = self.tenants["service"].copy()
            row = super().add(arrival, now_s)
            self.tenants["service"][: len(before)] = before
            return row

    monkeypatch.setattr("burrstone.batching.sim.fairness_bound.EnginePolicy", Unlifted)
    gaps = [widest_gap(random_load(seed)) for seed in range(25)]
    assert any(gap > bound for gap, bound in gaps)
