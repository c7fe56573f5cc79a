"""Brownout: stages by pressure, low priority first, refusal last, and no flicker."""

from typing import Any

import pytest

from burrstone.batching.admission.brownout import STAGES, Brownout, Stage
from burrstone.batching.admission.decision import Admit, Decision, Degrade, GateRequest, GateView, Queue, Reject
from burrstone.batching.errors import UsageError

SEATS = 100
HIGH, MIDDLE, LOW = 0, 1, 2


def decide(policy: Brownout, load: int, now_s: float, priority: int = LOW, max_tokens: int = 10_000) -> Decision:
    """With this request, `load` sequences are here."""
    asked = GateRequest(seq=0, tenant="a", prompt_tokens=10, max_tokens=max_tokens, priority=priority)
    running, waiting = min(load - 1, SEATS), max(0, load - 1 - SEATS)
    return policy.decide(asked, GateView(SEATS, running, waiting, waiting, 0, 100.0), now_s)


@pytest.mark.parametrize(
    ("load", "low", "middle", "high"),
    [
        (100, Admit(), Admit(), Admit()),
        (124, Queue(), Queue(), Queue()),
        (125, Degrade(512), Queue(), Queue()),
        (175, Degrade(256), Degrade(512), Queue()),
        (250, Degrade(128), Degrade(256), Degrade(512)),
        (400, Reject, Degrade(128), Degrade(256)),
        (4000, Reject, Degrade(128), Degrade(256)),
    ],
)
def test_stages_reach_the_lowest_class_first(load: int, low: Any, middle: Any, high: Any) -> None:
    for priority, expected in ((LOW, low), (MIDDLE, middle), (HIGH, high)):
        decision = decide(Brownout((HIGH, MIDDLE, LOW)), load, 0.0, priority)
        assert isinstance(decision, Reject) if expected is Reject else decision == expected


def test_where_all_are_equal_all_feel_it() -> None:
    assert decide(Brownout((0,)), 125, 0.0, priority=0) == Degrade(512)
    assert isinstance(decide(Brownout((0,)), 400, 0.0, priority=0), Reject)


def test_short_answers_are_left_alone() -> None:
    assert decide(Brownout((0,)), 260, 0.0, priority=0, max_tokens=128) == Queue()


def test_a_stage_ends_below_where_it_began_and_not_at_once() -> None:
    policy = Brownout((LOW,), hold_s=5.0)
    assert decide(policy, 180, 0.0) == Degrade(256)
    assert decide(policy, 120, 4.9) == Degrade(256)  # low enough, too soon
    assert decide(policy, 126, 6.0) == Degrade(256)  # long enough, too high
    assert decide(policy, 120, 6.1) == Degrade(512)
    assert decide(policy, 91, 20.0) == Degrade(512)
    assert decide(policy, 90, 20.1) == Admit()


def test_pressure_that_comes_back_is_felt_at_once() -> None:
    policy = Brownout((LOW,), hold_s=5.0)
    assert decide(policy, 130, 0.0) == Degrade(512)
    assert decide(policy, 260, 0.1) == Degrade(128)
    assert decide(policy, 50, 60.0) == Admit()
    assert decide(policy, 260, 60.1) == Degrade(128)


@pytest.mark.parametrize("seat_s", [0.5, 20.0])
def test_retry_after_holds(seat_s: float) -> None:
    """As many as are said to finish in that time do; then the request is taken."""
    policy = Brownout((LOW,), hold_s=5.0)
    ended = GateRequest(seq=1, tenant="a", prompt_tokens=1, max_tokens=1)
    policy.started(ended, 0.0)
    policy.left(ended, 1, seat_s, started=True, finished=True)
    refused = decide(policy, 500, 100.0)
    assert isinstance(refused, Reject) and refused.reason == "brownout"
    retry_s = refused.retry_after_s
    assert retry_s >= 5.0
    finished = int(retry_s * SEATS / seat_s + 1e-9)
    assert not isinstance(decide(policy, max(1, 500 - finished), 100.0 + retry_s), Reject)


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Stage(2.0, 1.0, 10), Stage(1.0, 0.5, None)),
        (Stage(1.0, 1.5, 10),),
        (Stage(1.0, 0.9, 9), Stage(2.0, 0.5, 5)),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(UsageError, match="brownout stages"):
        Brownout((0,), stages)


def test_refusal_comes_last() -> None:
    caps = [stage.max_tokens for stage in STAGES]
    assert caps[-1] is None and caps[:-1] == sorted((cap for cap in caps if cap is not None), reverse=True)
