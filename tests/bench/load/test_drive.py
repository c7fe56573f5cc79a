"""Schedules are kept whatever the server does, and every offered request is accounted for. On a clock of its own."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run_virtually

from burrstone.batching.sim.traffic.workload_types import NONE, Workload
from burrstone.bench.load.drive import Drive, Terms
from burrstone.bench.load.record import Record


@dataclass
class ScriptedWire:
    """Answers after `first_s`, then a piece every `gap_s`; stalls all that arrives in [stall]. Fails what `fails` names."""

    now: Callable[[], float]
    first_s: float = 0.2
    gap_s: float = 0.05
    stall: tuple[float, float] = (math.inf, math.inf)
    fails: frozenset[int] = frozenset()
    bodies: dict[int, dict[str, Any]] = field(default_factory=dict)
    headers: dict[int, dict[str, str]] = field(default_factory=dict)
    most_at_once: int = 0
    _at_once: int = 0

    async def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str:
        self.bodies[record.number], self.headers[record.number] = body, headers
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        record.sent_s = self.now()
        try:
            if record.number in self.fails:
                record.error = "503 overloaded"
                return ""
            if self.stall[0] <= record.sent_s < self.stall[1]:
                await asyncio.sleep(self.stall[1] - record.sent_s)
            await asyncio.sleep(self.first_s)
            for piece in range(body["max_tokens"]):
                if piece:
                    await asyncio.sleep(self.gap_s)
                record.pieces_s.append(self.now())
            record.output_tokens, record.prompt_tokens, record.error = body["max_tokens"], 7, None
            return f"answer {record.number}" if keep_text else ""
        finally:
            self._at_once -= 1
            record.ended_s = self.now()

    async def close(self) -> None:
        pass


def drive(
    workload: Workload, *, concurrency: int | None = None, terms: Terms = Terms(), **wire: Any
) -> tuple[list[Record], ScriptedWire]:
    async def run() -> tuple[list[Record], ScriptedWire]:
        now = asyncio.get_running_loop().time
        scripted = ScriptedWire(now, **wire)
        made = Drive(workload, terms, scripted, now)
        records = await (made.open_loop() if concurrency is None else made.closed_loop(concurrency))
        return sorted(records, key=lambda record: record.number), scripted

    return run_virtually(run())


def requests(arrival_s: list[float], output: int = 5, **columns: Any) -> Workload:
    size = len(arrival_s)
    return Workload(np.array(arrival_s), np.full(size, 20), np.full(size, output), **columns)


def test_figures_are_what_the_server_did() -> None:
    records, _ = drive(requests([0.0, 1.0, 1.5]))
    for record in records:
        assert record.ok and record.late_s == pytest.approx(0)
        assert record.ttft_s == record.ttft_sent_s == pytest.approx(0.2)
        assert record.tpot_s == pytest.approx(0.05) and record.gaps_s == pytest.approx([0.05] * 4)
        assert record.e2e_s == pytest.approx(0.4)


def test_a_stalled_server_does_not_slow_the_arrivals() -> None:
    """No coordinated omission: what arrives during a stall of ten seconds is sent on time and waits for its whole rest."""
    arrival_s = [n / 10 for n in range(150)]
    records, _ = drive(requests(arrival_s), stall=(2.0, 12.0))
    assert [record.sent_s for record in records] == pytest.approx(arrival_s)
    for record in records:
        waited_s = 12.0 - record.intended_s if 2.0 <= record.intended_s < 12.0 else 0.0
        assert record.ttft_s == pytest.approx(0.2 + waited_s)


def test_the_clock_starts_when_all_is_ready() -> None:
    zero_s: list[float] = []

    async def run(concurrency: int | None) -> list[Record]:
        clock = asyncio.get_running_loop().time

        await asyncio.sleep(30.0)  # what came before it does not count

        def start() -> None:
            zero_s.append(clock() + 0.1)

        def now() -> float:
            return clock() - zero_s[-1]

        made = Drive(requests([0.0, 1.0]), Terms(), ScriptedWire(now), now, start=start)
        return await (made.open_loop() if concurrency is None else made.closed_loop(concurrency))

    assert [record.late_s for record in run_virtually(run(None))] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert run_virtually(run(1))[0].intended_s == pytest.approx(0.0, abs=1e-6)
    assert len(zero_s) == 2


def test_a_closed_loop_begins_nothing_after_its_time() -> None:
    async def run() -> list[Record]:
        now = asyncio.get_running_loop().time
        made = Drive(requests([0.0] * 100, output=1), Terms(), ScriptedWire(now, first_s=1.0), now)
        return await made.closed_loop(2, until_s=4.5)

    records = run_virtually(run())
    assert len(records) == 10 and all(record.ok and record.intended_s < 4.5 for record in records)


def test_a_closed_loop_waits_and_never_has_more_under_way() -> None:
    records, wire = drive(requests([0.0] * 9), concurrency=3)
    assert wire.most_at_once == 3
    assert sorted(record.sent_s for record in records) == pytest.approx([0.0] * 3 + [0.4] * 3 + [0.8] * 3)


def program(calls: int) -> Workload:
    number = np.arange(calls)
    return Workload(
        number.astype(np.float64),
        20 + 15 * number,
        np.full(calls, 5),
        program=np.zeros(calls, np.int64),
        turn=number,
        after=number - 1,
        think_s=np.where(number == 0, 0.0, 1.0),
    )


@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_program_s_calls_hold_what_was_said_before(concurrency: int | None) -> None:
    _, wire = drive(program(3), concurrency=concurrency)
    texts = [[message["content"] for message in wire.bodies[number]["messages"]] for number in range(3)]
    assert [len(text) for text in texts] == [1, 3, 5]
    assert texts[2][:3] == texts[1] and texts[1][:1] == texts[0]
    assert (texts[2][1], texts[2][3]) == ("answer 0", "answer 1")
    # As many words as the workload has tokens, less those that are there already.
    assert [len(text[-1].split()) for text in texts] == [20, 10, 10]
    assert {headers["x-session-id"] for headers in wire.headers.values()} == {"bench-0-0"}


@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_program_s_next_call_is_due_its_pause_after_the_answer(concurrency: int | None) -> None:
    records, _ = drive(program(3), concurrency=concurrency)
    assert [record.intended_s for record in records] == pytest.approx([0.0, 1.4, 2.8])


@pytest.mark.parametrize("concurrency", [None, 2])
def test_what_follows_a_failure_counts_as_offered_and_failed(concurrency: int | None) -> None:
    records, wire = drive(program(4), concurrency=concurrency, fails=frozenset({1}))
    assert [record.error for record in records] == [None, "503 overloaded", *["the call before it failed"] * 2]
    assert sorted(wire.bodies) == [0, 1]


def test_a_request_that_takes_too_long_is_given_up() -> None:
    records, _ = drive(requests([0.0, 1.0]), stall=(0.0, 0.5), terms=Terms(timeout_s=0.45))
    assert [record.error for record in records] == ["no end within 0.45 s", None]
    assert not records[0].good


def test_tenants_models_and_keys() -> None:
    workload = requests([0.0, 0.0, 0.0], tenant=np.array([0, 1, 0]), tenant_weight=np.ones(2))
    terms = Terms(models=("a", "b"), keys=("one", "two"), tenants=("gold",))
    records, wire = drive(workload, terms=terms)
    assert [record.tenant for record in records] == ["gold", "1", "gold"]
    assert [wire.bodies[n]["model"] for n in range(3)] == ["a", "b", "a"]
    assert [wire.headers[n]["Authorization"] for n in range(3)] == ["Bearer one", "Bearer two", "Bearer one"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 20, allow_nan=False), min_size=1, max_size=30),
    st.sets(st.integers(0, 29)),
    st.one_of(st.none(), st.integers(1, 5)),
    st.randoms(use_true_random=False),
)
def test_every_request_is_offered_once_and_accounted_for(
    arrival_s: list[float], fails: set[int], concurrency: int | None, draw: Any
) -> None:
    size = len(arrival_s)
    after = np.array([draw.choice([NONE, draw.randrange(n)]) if n else NONE for n in range(size)])
    workload = requests(sorted(arrival_s), after=after, think_s=np.array([draw.random() for _ in range(size)]))
    records, _ = drive(workload, concurrency=concurrency, fails=frozenset(fails))
    assert [record.number for record in records] == list(range(size))
    for record in records:
        before = int(after[record.number])
        lost = before != NONE and not records[before].ok
        assert record.ok == (record.number not in fails and not lost)
        if record.ok and before != NONE:
            assert record.sent_s >= records[before].ended_s
        if record.ok and concurrency is None:
            assert record.late_s == pytest.approx(0, abs=1e-6)
