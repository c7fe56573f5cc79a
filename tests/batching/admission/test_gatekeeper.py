"""The whole gate, whatever the policy: nobody is lost, and a restart from a saved state changes no decision."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.admission.decision import Admit, GateRequest, Queue, Reject
from burrstone.batching.admission.gatekeeper import Gatekeeper
from burrstone.batching.admission.registry import ADMISSION_NAMES, make_admission
from burrstone.batching.errors import UsageError

TERMS: dict[str, dict[str, Any]] = {
    "a": {"weight": 1.0, "ttft_s": 0.5, "tokens_per_s": 50.0},
    "b": {"weight": 4.0, "priority": 1, "ttft_s": 2.0, "tokens_per_s": 500.0, "burst_tokens": 600.0},
    "c": {"priority": 2, "max_concurrent": 1},
}


def keeper(name: str, max_running: int | None = 2) -> Gatekeeper:
    return Gatekeeper(make_admission(name, (0, 1, 2)), max_running=max_running, engine_seats=3)


class Life:
    """A gatekeeper and who is where, by what it says itself."""

    def __init__(self, gate: Gatekeeper) -> None:
        self.gate = gate
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.prefilled: set[int] = set()
        self.said: list[str] = []

    def play(self, event: tuple[str, int, int], seq: int, now_s: float) -> None:
        kind, number, size = event
        if kind == "arrive":
            tenant = "abc"[number % 3]
            asked = GateRequest(seq, tenant, size, 4 * size, 1 + number % 2, whole=number % 5 == 0, **TERMS[tenant])
            decision = self.gate.arrive(asked, now_s)
            self.said.append(repr(decision))
            if not isinstance(decision, Reject):
                self.gate.wait(seq)
                self.waiting.append(seq)
        elif kind == "cancel" and self.waiting:
            self.gate.leave(self.waiting.pop(number % len(self.waiting)), 0, now_s, finished=False)
        elif kind == "token" and self.running:
            one = self.running[number % len(self.running)]
            if one not in self.prefilled and self.gate._visitors[one].request.whole is False:
                self.prefilled.add(one)
                self.gate.first_token(one, now_s)
        elif kind == "end" and self.running:
            self.gate.leave(self.running.pop(number % len(self.running)), size, now_s, finished=number % 4 != 0)
        released = self.gate.release(now_s)
        self.said.append(f"released {released}")
        for one in released:
            self.waiting.remove(one)
            self.running.append(one)


_EVENT = st.tuples(
    st.sampled_from(["arrive", "arrive", "token", "end", "cancel"]), st.integers(0, 30), st.integers(0, 300)
)
_EVENTS = st.lists(st.tuples(_EVENT, st.floats(0, 2)), max_size=60)


@pytest.mark.parametrize("name", ADMISSION_NAMES)
@given(events=_EVENTS, restart=st.integers(0, 60), max_running=st.sampled_from([None, 1, 3]))
@settings(deadline=None, max_examples=60)
def test_nobody_is_lost_and_a_restart_changes_nothing(
    name: str, events: list[tuple[tuple[str, int, int], float]], restart: int, max_running: int | None
) -> None:
    straight, broken, now_s = Life(keeper(name, max_running)), Life(keeper(name, max_running)), 1000.0
    for seq, (event, gap_s) in enumerate(events):
        now_s += gap_s
        if seq == restart:
            saved = json.loads(json.dumps(broken.gate.save(now_s)))
            broken.gate = keeper(name, max_running)
            broken.gate.load(saved, now_s)
        straight.play(event, seq, now_s)
        broken.play(event, seq, now_s)
        queue = straight.gate.queue
        assert all(one in queue for one in straight.waiting) and not any(one in queue for one in straight.running)
        assert straight.running or not straight.waiting
    assert [_rounded(text) for text in straight.said] == [_rounded(text) for text in broken.said]
    for life in (straight, broken):
        for one in life.running + life.waiting:
            life.gate.leave(one, 0, now_s, finished=False)
        assert (life.gate.queue.running, life.gate.queue.waiting) == (0, 0)


def _rounded(text: str) -> str:
    """Ages are differences of times, so a restored time may differ in its last bits."""
    head, mark, tail = text.partition("retry_after_s=")
    return head + (f"{float(tail.split(',')[0]):.6f}" if mark else "")


@pytest.mark.parametrize("name", ADMISSION_NAMES)
def test_equal_histories_have_equal_hashes(name: str) -> None:
    hashes = []
    for prompt in (10, 10, 4000):
        life = Life(keeper(name))
        for seq in range(20):
            life.play(("arrive", seq, prompt), seq, seq * 0.1)
            life.play(("end", seq, 20), seq, seq * 0.1)
        hashes.append(life.gate.admission.hash)
    assert hashes[0] == hashes[1]
    assert 0 <= hashes[0] < 2**64
    if name == "token-bucket":
        assert hashes[2] != hashes[0]


def test_everybody_is_let_in_by_the_open_gate() -> None:
    gate = keeper("open")
    said = []
    for seq in range(4):
        said.append(gate.arrive(GateRequest(seq, "a", 10**6, 10**6), 0.0))
        gate.wait(seq)
        gate.release(0.0)
    assert said == [Admit(), Admit(), Queue(), Queue()]


def test_a_degraded_request_is_expected_to_take_less() -> None:
    gate = keeper("brownout", max_running=1)
    service = []
    for seq in range(3):  # one seat: at two requests the second stage begins, at three the third
        gate.arrive(GateRequest(seq, "c", 10, 2000, priority=2), 0.0)
        gate.wait(seq)
    for seq in range(3):
        gate.release(0.0)
        service.append(gate.queue.service("c"))
        gate.leave(seq, 100, 0.0, finished=True)
    used = 10 + 2 * 100
    assert service == [10 + 2 * 2000, used + 10 + 2 * 256, 2 * used + 10 + 2 * 128]


@pytest.mark.parametrize(
    ("whole", "seen", "finished", "charged"),
    [(True, 0, False, 50), (True, 20, False, 20), (True, 20, True, 20), (False, 20, False, 20), (False, 0, False, 0)],
)
def test_a_whole_answer_cut_short_costs_what_was_expected(whole: bool, seen: int, finished: bool, charged: int) -> None:
    gate = keeper("token-bucket")
    terms: dict[str, Any] = {"tokens_per_s": 1.0, "burst_tokens": 100.0}
    gate.arrive(GateRequest(0, "a", 10, 25, 2, whole=whole, **terms), 0.0)
    gate.wait(0)
    assert gate.release(0.0) == [0]
    gate.leave(0, seen, 0.0, finished=finished)
    assert gate.queue.service("a") == 10 + 2 * charged
    assert gate.arrive(GateRequest(1, "a", 100, 0, **terms), 0.0) == Reject(10.0 + charged, "token_rate")


def test_a_place_comes_free_as_often_as_those_who_run_leave() -> None:
    gate = keeper("open", max_running=2)
    for seq in range(4):
        gate.arrive(GateRequest(seq, "a", 10, 10), 0.0)
        gate.wait(seq)
    assert gate.release(0.0) == [0, 1] and gate.next_place_s() == 0.0
    for seq in (0, 1):
        gate.leave(seq, 10, 30.0, finished=True)
    assert gate.release(30.0) == [2, 3] and gate.next_place_s() == pytest.approx(15.0)
    restored = keeper("open", max_running=2)
    restored.load(json.loads(json.dumps(gate.save(31.0))), 0.0)
    restored.leave(2, 10, 29.0, finished=True)  # ran 30 s, of which 1 s before the restart
    assert restored.next_place_s() == pytest.approx(30.0)


@pytest.mark.parametrize(("given", "hint"), [("predictiv", "did you mean 'predictive'"), ("xyz", "open, token-bucket")])
def test_an_unknown_name_gets_the_nearest_one(given: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        make_admission(given)


def test_state_of_another_policy_is_refused() -> None:
    saved = make_admission("open").save(0.0)
    with pytest.raises(ValueError, match="'open'"):
        make_admission("brownout").load(saved, 0.0)
