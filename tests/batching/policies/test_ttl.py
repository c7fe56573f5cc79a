"""How long KV caches are kept for a program's next call."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.batching.core.requests import new_tenants
from burrstone.batching.policies.ttl import keep_s, observe_call_end, observe_gap

CAP_S = 30.0


def tenant_with(gaps_s: list[float], *, calls: int | None = None) -> np.void:
    tenant: np.void = new_tenants(1)[0]
    for _ in range(len(gaps_s) if calls is None else calls):
        observe_call_end(tenant)
    for gap_s in gaps_s:
        observe_gap(tenant, gap_s)
    return tenant


def test_nothing_is_kept_before_returns_were_seen() -> None:
    assert keep_s(tenant_with([], calls=100), CAP_S) == 0.0
    assert keep_s(tenant_with([1.0] * 3), CAP_S) == 0.0


def test_three_in_four_returns_are_covered() -> None:
    assert 4.0 <= keep_s(tenant_with([1.0] * 70 + [4.0] * 10 + [25.0] * 20), CAP_S) < 8.0
    assert 1.0 <= keep_s(tenant_with([1.0] * 80 + [4.0] * 12 + [25.0] * 8), CAP_S) < 2.0


def test_returns_after_the_cap_do_not_count() -> None:
    assert keep_s(tenant_with([500.0] * 50), CAP_S) == 0.0
    assert 1.0 <= keep_s(tenant_with([1.0] * 50 + [500.0] * 50), CAP_S) < 2.0


def test_nothing_is_kept_where_programs_seldom_come_back() -> None:
    assert keep_s(tenant_with([1.0] * 20, calls=1000), CAP_S) == 0.0


def test_what_was_seen_lately_decides() -> None:
    tenant = tenant_with([20.0] * 50)
    for _ in range(1000):
        observe_call_end(tenant)
        observe_gap(tenant, 0.5)
    assert keep_s(tenant, CAP_S) == pytest.approx(0.5, abs=0.3)


@given(st.lists(st.floats(0.0, 1e5), min_size=4, max_size=60), st.floats(0.0, 1e4))
def test_never_longer_than_the_cap(gaps_s: list[float], cap_s: float) -> None:
    tenant = tenant_with(gaps_s)
    assert 0.0 <= keep_s(tenant, cap_s) <= cap_s
    assert all(np.isfinite(tenant["gaps"])) and tenant["gaps"].sum() == pytest.approx(len(gaps_s))
