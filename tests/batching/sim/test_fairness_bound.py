"""The service gap of backlogged tenants stays within the bound of the paper under vtc, and does not under fcfs."""

import pytest

from burrstone.batching.sim.fairness_bound import random_load, widest_gap


@pytest.mark.parametrize("seed", range(25))
def test_vtc_keeps_the_gap_within_the_bound(seed: int) -> None:
    gap, bound = widest_gap(random_load(seed))
    assert 0 < gap <= bound


def test_first_come_first_served_does_not() -> None:
    gaps = [widest_gap(random_load(seed), "fcfs") for seed in range(25)]
    assert any(gap > bound for gap, bound in gaps)
