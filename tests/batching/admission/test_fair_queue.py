"""The queue at the gate: whose turn it is, and that nobody is lost, seated twice or kept from a free seat."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from burrstone.batching.admission.fair_queue import FairQueue, Waiter


def waiter(seq: int, tenant: str = "a", **terms: Any) -> Waiter:
    values = {"sequences": 1, "prompt_tokens": 10, "cost": 10.0} | terms
    return Waiter(seq, tenant, **values)


def seat_all(queue: FairQueue) -> list[int]:
    """Everybody in turn, each leaving before the next is asked for, having cost what was expected."""
    order = []
    while (one := queue.pop()) is not None:
        order.append(one.seq)
        queue.leave(one.seq, one.cost)
    return order


def test_within_a_tenant_first_come_first_served() -> None:
    queue = FairQueue(seats=1)
    for seq, cost in enumerate([50.0, 1.0, 20.0, 1.0]):
        queue.put(waiter(seq, cost=cost))
    assert seat_all(queue) == [0, 1, 2, 3]


def test_a_flood_waits_for_itself() -> None:
    queue = FairQueue(seats=1)
    for seq in range(100):
        queue.put(waiter(seq, "flood"))
    assert queue.pop() is not None
    queue.put(waiter(100, "quiet"))
    queue.leave(0, 10.0)
    assert seat_all(queue).index(100) <= 1


def test_a_newcomer_is_not_passed_by_what_turned_out_cheap() -> None:
    queue = FairQueue(seats=2)
    for seq in range(8):
        queue.put(waiter(seq, "flood", cost=1000.0))
    assert queue.pop() is not None and queue.pop() is not None
    queue.put(waiter(100, "quiet", cost=1000.0))
    queue.leave(0, 10.0)
    newly = queue.pop()
    assert newly is not None and newly.seq == 100


def test_better_priorities_go_first_whatever_they_had() -> None:
    queue = FairQueue(seats=1)
    queue.put(waiter(0, "late", priority=1))
    for seq in range(1, 4):
        queue.put(waiter(seq, "first", priority=0, cost=1000.0))
    assert seat_all(queue) == [1, 2, 3, 0]


def test_idling_earns_no_credit() -> None:
    queue = FairQueue(seats=1)
    for seq in range(50):
        queue.put(waiter(seq, "busy"))
    for _ in range(40):
        one = queue.pop()
        assert one is not None
        queue.leave(one.seq, one.cost)
    for seq in range(100, 120):
        queue.put(waiter(seq, "back"))
    first = seat_all(queue)[:10]
    assert 4 <= sum(seq >= 100 for seq in first) <= 6


def test_a_tenant_at_its_bound_earns_no_credit_for_those_who_come_back() -> None:
    queue = FairQueue(seats=2)
    for seq in range(2):
        queue.put(waiter(seq, "bounded", max_concurrent=1))  # one runs throughout, the other waits for it
    assert queue.pop() is not None
    for seq in range(10, 60):
        queue.put(waiter(seq, "busy"))
    for _ in range(40):
        one = queue.pop()
        assert one is not None and one.tenant == "busy"
        queue.leave(one.seq, one.cost)
    for seq in range(100, 120):
        queue.put(waiter(seq, "back"))
    first = seat_all(queue)[:10]
    assert 4 <= sum(seq >= 100 for seq in first) <= 6


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_owed() -> None:
    queue = FairQueue(seats=2)
    queue.put(waiter(0, "a", cost=100.0, weight=2.0))
    queue.put(waiter(1, "b", cost=100.0))
    assert queue.pop() is not None and queue.pop() is not None
    assert (queue.service("a"), queue.service("b")) == (50.0, 100.0)
    assert queue.leave(0, 20.0) and queue.leave(1, 300.0)
    assert (queue.service("a"), queue.service("b")) == (10.0, 300.0)
    assert not queue.leave(0, 20.0)


def test_a_tenant_at_its_bound_lets_others_pass() -> None:
    queue = FairQueue(seats=None)
    for seq in range(3):
        queue.put(waiter(seq, "bounded", max_concurrent=2))
    queue.put(waiter(3, "other"))
    seated = [one.seq for one in iter(queue.pop, None)]
    assert sorted(seated) == [0, 1, 3]
    queue.leave(0, 10.0)
    assert [one.seq for one in iter(queue.pop, None)] == [2]


def test_many_choices_wait_for_enough_seats_and_are_not_passed() -> None:
    queue = FairQueue(seats=4)
    queue.put(waiter(0, sequences=3))
    assert queue.pop() is not None
    queue.put(waiter(1, sequences=9))  # more than there are: all of them
    queue.put(waiter(2, sequences=1))
    assert queue.pop() is None
    queue.leave(0, 10.0)
    assert [one.seq for one in iter(queue.pop, None)] == [1]
    assert queue.running == 4


def test_who_gives_way_in_a_full_queue() -> None:
    queue = FairQueue(seats=1)
    for seq in range(6):
        queue.put(waiter(seq, "flood"))
    queue.put(waiter(6, "heavy", weight=10.0))
    assert queue.victim(waiter(7, "quiet")) == 5  # the last of the line that has most
    assert queue.victim(waiter(7, "flood")) is None
    assert queue.victim(waiter(7, "worse", priority=1)) is None
    queue.put(waiter(8, "batch", priority=3))
    assert queue.victim(waiter(9, "flood")) == 8


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=4),
    costs=st.lists(st.integers(1, 100), min_size=1, max_size=7),
    seats=st.integers(1, 5),
    lies=st.lists(st.floats(0.2, 2.0), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=100)
def test_shares_of_backlogged_tenants_follow_their_weights(
    weights: list[float], costs: list[int], seats: int, lies: list[float]
) -> None:
    """Weighted service of two tenants that always wait never differs by more than what their seats hold at once."""
    queue = FairQueue(seats)
    served, seq, running = [0.0] * len(weights), 0, []
    most = max(costs) * max(*lies, 1.0)
    for tenant, weight in enumerate(weights):
        for _ in range(150):
            cost = float(costs[seq % len(costs)])
            queue.put(waiter(seq, str(tenant), cost=cost, weight=weight))
            seq += 1
    for step in range(100):
        running += list(iter(queue.pop, None))
        one = running.pop(0)
        cost = one.cost * lies[step % len(lies)]
        queue.leave(one.seq, cost)
        served[int(one.tenant)] += cost / one.weight
    bound = 2 * (seats + 1) * most / min(weights)
    assert max(served) - min(served) <= bound


@given(
    put=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.integers(0, 1)), max_size=12),
    tenant=st.integers(0, 3),
)
@settings(deadline=None, max_examples=200)
def test_what_is_said_to_be_ahead_is_what_goes_first(put: list[tuple[int, int, int]], tenant: int) -> None:
    queue = FairQueue(seats=1)
    priority_of: dict[int, int] = {}
    for seq, (owner, cost, priority) in enumerate(put):
        priority = priority_of.setdefault(owner, priority)
        queue.put(waiter(seq, str(owner), cost=float(cost), priority=priority, prompt_tokens=cost))
    newcomer = waiter(99, str(tenant), priority=priority_of.get(tenant, 0))
    ahead = queue.ahead(newcomer)
    queue.put(newcomer)
    order = seat_all(queue)
    before = order[: order.index(99)]
    # Of equals, those that might go first are counted as if they did.
    assert ahead.sequences >= len(before)
    assert ahead.sequences <= len(before) + len({owner for owner, _, _ in put})
    assert ahead.prompt_tokens >= sum(put[seq][1] for seq in before)


TENANTS: dict[str, dict[str, Any]] = {
    "a": {"weight": 1.0},
    "b": {"weight": 4.0},
    "c": {"priority": 1},
    "d": {"max_concurrent": 2},
}


class QueueLife(RuleBasedStateMachine):
    """Any order of arrivals, seats, cancellations, endings, and restarts from a saved state."""

    @initialize(seats=st.one_of(st.none(), st.integers(1, 4)))
    def begin(self, seats: int | None) -> None:
        self.queue = FairQueue(seats)
        self.waiting: dict[int, str] = {}
        self.seated: dict[int, str] = {}
        self.gone: set[int] = set()
        self.seq = 0

    @rule(tenant=st.sampled_from(sorted(TENANTS)), sequences=st.integers(1, 6), cost=st.integers(0, 100))
    def arrive(self, tenant: str, sequences: int, cost: int) -> None:
        self.queue.put(waiter(self.seq, tenant, sequences=sequences, cost=float(cost), **TENANTS[tenant]))
        self.waiting[self.seq] = tenant
        self.seq += 1

    @rule()
    def seat(self) -> None:
        while (one := self.queue.pop()) is not None:
            tenant = self.waiting.pop(one.seq)  # waited, and so was neither seated before nor cancelled
            assert one.seq == min([one.seq, *(seq for seq, other in self.waiting.items() if other == tenant)])
            self.seated[one.seq] = tenant
        if self.waiting and not self.seated:
            raise AssertionError("seats are free, and nobody is called")

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.remove(seq) and not self.queue.remove(seq)
        self.gone.add(seq)
        del self.waiting[seq]

    @precondition(lambda self: self.seated)
    @rule(data=st.data(), cost=st.integers(0, 200))
    def end(self, data: st.DataObject, cost: int) -> None:
        seq = data.draw(st.sampled_from(sorted(self.seated)))
        assert self.queue.leave(seq, float(cost)) and not self.queue.leave(seq, float(cost))
        self.gone.add(seq)
        del self.seated[seq]

    @rule()
    def restart(self) -> None:
        saved = json.loads(json.dumps(self.queue.save()))
        restored = FairQueue.restored(saved, self.queue.seats)
        assert restored.save() == self.queue.save()
        self.queue = restored

    @invariant()
    def everybody_is_somewhere(self) -> None:
        assert all(seq in self.queue for seq in self.waiting)
        assert not any(seq in self.queue for seq in (*self.seated, *self.gone))
        assert (self.queue.waiting == 0) == (not self.waiting)
        assert (self.queue.running == 0) == (not self.seated)
        assert self.queue.seats is None or self.queue.running <= self.queue.seats


TestQueueLife = QueueLife.TestCase
TestQueueLife.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
