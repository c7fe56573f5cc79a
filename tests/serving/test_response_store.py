"""The store of responses against a plain model of it, through whatever order of calls comes."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from burrstone.batching.errors import NotFound
from burrstone.serving.api.response_store import ResponseStore, StoredResponse
from burrstone.serving.api.types import Event

MAX_RESPONSES, MAX_BYTES, TTL_S = 4, 3000, 100.0
TENANTS = st.sampled_from(["anna", "bob"])


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def item(name: str, text: str = "") -> dict[str, Any]:
    return {"id": name, "type": "message", "text": text}


def stored(response_id: str, tenant: str, status: str, *, inputs: list[str], size: int = 0) -> StoredResponse:
    response = {"id": response_id, "status": status, "output": [], "padding": "x" * size}
    return StoredResponse(tenant, response, [item(name) for name in inputs])


@dataclass
class Known:
    """What the model knows of a response that was put: when, and whether it runs."""

    tenant: str
    running: bool
    stored_s: float
    deleted: bool = False
    entry: StoredResponse = field(default_factory=lambda: stored("", "", "", inputs=[]))


class StoreMachine(RuleBasedStateMachine):
    """Responses come, run, finish, age and go; two tenants ask for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = ResponseStore(MAX_RESPONSES, MAX_BYTES, TTL_S, self.clock)
        self.known: dict[str, Known] = {}

    @rule(
        tenant=TENANTS,
        status=st.sampled_from(["queued", "in_progress", "completed", "failed"]),
        inputs=st.lists(st.sampled_from(["item-1", "item-2", "item-3"]), unique=True, max_size=2),
        size=st.integers(0, 1200),
    )
    def put(self, tenant: str, status: str, inputs: list[str], size: int) -> None:
        response_id = f"resp-{len(self.known)}"
        entry = stored(response_id, tenant, status, inputs=inputs, size=size)
        self.store.put(entry)
        running = status in ("queued", "in_progress")
        self.known[response_id] = Known(tenant, running, self.clock.now_s, entry=entry)

    @precondition(lambda self: any(known.running for known in self.known.values()))
    @rule(data=st.data(), outputs=st.lists(st.sampled_from(["out-1", "out-2"]), unique=True), ends=st.booleans())
    def go_on(self, data: st.DataObject, outputs: list[str], ends: bool) -> None:
        """A running response changes in place, as it does while it is generated, and is kept again."""
        response_id = data.draw(st.sampled_from(sorted(r for r, known in self.known.items() if known.running)))
        known = self.known[response_id]
        known.entry.response["output"] = [item(f"{response_id}-{name}") for name in outputs]
        if ends:
            known.entry.response["status"] = "completed"
            known.running = False
        known.stored_s = self.clock.now_s
        self.store.refresh(known.entry)

    @precondition(lambda self: any(known.running for known in self.known.values()))
    @rule(data=st.data(), size=st.integers(0, 1200))
    def append(self, data: st.DataObject, size: int) -> None:
        response_id = data.draw(st.sampled_from(sorted(r for r, known in self.known.items() if known.running)))
        self.store.append(self.known[response_id].entry, Event({"text": "x" * size}))

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @precondition(lambda self: self.known)
    @rule(data=st.data(), tenant=TENANTS)
    def delete(self, data: st.DataObject, tenant: str) -> None:
        response_id = data.draw(st.sampled_from(sorted(self.known)))
        known = self.known[response_id]
        try:
            self.store.delete(response_id, tenant)
        except NotFound:
            assert known.tenant != tenant or not known.running or known.deleted
        else:
            assert known.tenant == tenant
            known.deleted, known.running = True, False

    @invariant()
    def what_runs_is_there_and_what_is_deleted_or_old_is_not(self) -> None:
        for response_id, known in self.known.items():
            found = self.find(response_id, known.tenant)
            if known.running:
                assert found is known.entry
            if known.deleted or (not known.running and self.clock.now_s - known.stored_s > TTL_S):
                assert found is None

    @invariant()
    def tenants_do_not_see_one_another(self) -> None:
        for response_id, known in self.known.items():
            assert self.find(response_id, "anna" if known.tenant == "bob" else "bob") is None
        for name in ("item-1", "item-2", "item-3"):
            for tenant in ("anna", "bob"):
                found = self.store.find_item(name, tenant)
                holders = [k for k in self.known.values() if k.tenant == tenant and found in k.entry.input_items]
                assert found is None or holders

    @invariant()
    def an_item_is_found_in_the_response_that_holds_it_now(self) -> None:
        for response_id, known in self.known.items():
            for name in ("out-1", "out-2"):
                found = self.store.find_item(f"{response_id}-{name}", known.tenant)
                assert found is None or found in known.entry.response["output"]
                kept = self.find(response_id, known.tenant) is not None
                assert (found is not None) == (kept and item(f"{response_id}-{name}") in known.entry.response["output"])

    @invariant()
    def it_stays_within_its_bounds(self) -> None:
        """Beyond them only by what runs, and by the newest, which nothing else can make room for."""
        kept = [known for response_id, known in self.known.items() if self.find(response_id, known.tenant) is not None]
        idle = [known for known in kept if not known.running]
        assert len(kept) <= MAX_RESPONSES or len(idle) <= 1
        num_bytes = sum(known.entry.num_bytes for known in kept)
        assert num_bytes <= MAX_BYTES or len(idle) <= 1

    def find(self, response_id: str, tenant: str) -> StoredResponse | None:
        try:
            return self.store.get(response_id, tenant)
        except NotFound:
            return None


TestStore = StoreMachine.TestCase
TestStore.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


def full_store() -> ResponseStore:
    store = ResponseStore(max_responses=2)
    for name in ("a", "b"):
        store.put(stored(name, "anna", "completed", inputs=[f"item-{name}"]))
    return store


@pytest.mark.parametrize(("asked", "dropped"), [("a", "b"), ("b", "a")])
def test_the_one_that_nobody_asked_for_goes_first(asked: str, dropped: str) -> None:
    store = full_store()
    store.get(asked, "anna")
    store.put(stored("c", "anna", "completed", inputs=[]))
    assert store.get(asked, "anna") and store.get("c", "anna")
    with pytest.raises(NotFound):
        store.get(dropped, "anna")
    assert store.find_item(f"item-{dropped}", "anna") is None
    assert store.find_item(f"item-{asked}", "anna") == item(f"item-{asked}")


@pytest.mark.parametrize("bound", [{"max_responses": 10}, {"max_bytes": 10 * 1100}], ids=["number", "bytes"])
def test_a_tenant_that_stores_much_loses_its_own(bound: dict[str, Any]) -> None:
    store = ResponseStore(**bound)
    for name in ("bob-1", "bob-2"):
        store.put(stored(name, "bob", "completed", inputs=[], size=1000))
    for number in range(50):
        store.put(stored(f"anna-{number}", "anna", "completed", inputs=[], size=1000))
    assert store.get("bob-1", "bob") and store.get("bob-2", "bob") and store.get("anna-49", "anna")
    with pytest.raises(NotFound):
        store.get("anna-0", "anna")


def test_events_of_a_running_response_count() -> None:
    store = ResponseStore(max_bytes=3000)
    store.put(stored("old", "anna", "completed", inputs=[], size=1000))
    running = stored("running", "anna", "in_progress", inputs=[])
    store.put(running)
    store.append(running, Event({"text": "x" * 1000}))
    assert store.get("old", "anna")
    store.append(running, Event({"text": "x" * 1000}))
    with pytest.raises(NotFound):
        store.get("old", "anna")
    assert store.get("running", "anna") is running and len(running.events) == 2
    store.delete("running", "anna")
    store.append(running, Event({"text": "x" * 5000}))
    kept = stored("next", "anna", "completed", inputs=[], size=1000)
    store.put(kept)
    store.put(stored("last", "anna", "completed", inputs=[], size=1000))
    assert store.get("next", "anna") is kept


def test_what_was_deleted_while_it_ran_stays_deleted() -> None:
    store = ResponseStore()
    running = stored("a", "anna", "in_progress", inputs=["item-a"])
    store.put(running)
    assert store.delete("a", "anna") is running
    running.response["status"] = "completed"
    store.refresh(running)
    with pytest.raises(NotFound) as missing:
        store.get("a", "anna")
    assert (missing.value.param, missing.value.code) == ("response_id", "response_not_found")
    assert store.find_item("item-a", "anna") is None


async def test_waiters_are_woken_once_for_each_change() -> None:
    entry = stored("a", "anna", "in_progress", inputs=[])
    seen = entry.changed
    entry.announce()
    assert seen.is_set() and not entry.changed.is_set()
