"""Offering a workload to a server: open loop, where arrivals wait for nobody, or closed, where so many clients take turns."""

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from burrstone.batching.sim.traffic.workload import Slo
from burrstone.batching.sim.traffic.workload_types import NONE, Workload
from burrstone.bench.load.prompts import Prompts, followers
from burrstone.bench.load.record import Record
from burrstone.bench.load.wires import Wire, within

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Terms:
    """How requests are worded. body: merged into each. models: asked for in turns. keys: tenant's number -> API key.

    A request wants exactly its workload's output tokens (`ignore_eos`) unless `stop_early`.
    """

    api: str = "chat"
    models: tuple[str, ...] = ("default",)
    body: dict[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    stop_early: bool = False
    timeout_s: float = 600.0


class Script:
    """What each request of a workload says. A request that follows another holds what was said before it, so its body is
    to be had when that one's answer has been `heard`; what follows a failure is `lost`."""

    def __init__(self, workload: Workload, terms: Terms, seed: int) -> None:
        self.workload, self.terms, self.seed = workload, terms, seed
        # Those that follow nothing.
        self.firsts = [int(number) for number in np.flatnonzero(workload.after == NONE)]
        self._prompts, self._follows = Prompts(workload, seed), followers(workload)
        self._said: dict[int, tuple[list[Message], int]] = {}

    def keeps(self, number: int) -> bool:
        """Whether another request needs this one's answer."""
        return number in self._follows

    def heard(self, record: Record, text: str) -> list[int]:
        """The requests that may follow now."""
        messages, spoken = self._said.pop(record.number)
        if not (record.ok and self.keeps(record.number)):
            return []
        answer: Message = {"role": "assistant", "content": text}
        self._said[record.number] = [*messages, answer], spoken + int(self.workload.output_tokens[record.number])
        return self._follows[record.number]

    def lost(self, number: int, now_s: float) -> Iterator[Record]:
        """What would have followed was offered too, and is as bad as what failed."""
        for follower in self._follows.get(number, ()):
            record = self.record(follower, now_s)
            record.error = "the call before it failed"
            yield record
            yield from self.lost(follower, now_s)

    def record(self, number: int, at_s: float) -> Record:
        workload = self.workload
        tenant = int(workload.tenant[number])
        slo = Slo(*(float(column[number]) for column in (workload.ttft_s, workload.tpot_s, workload.e2e_s)))
        program = int(workload.program[number])
        name = self.terms.tenants[tenant] if tenant < len(self.terms.tenants) else str(tenant)
        return Record(number, at_s, name, None if program == NONE else program, slo)

    def headers(self, number: int) -> dict[str, str]:
        headers = {}
        if self.terms.keys:
            key = self.terms.keys[int(self.workload.tenant[number]) % len(self.terms.keys)]
            headers["Authorization"] = f"Bearer {key}"
        if (program := int(self.workload.program[number])) != NONE:
            headers["x-session-id"] = f"bench-{self.seed}-{program}"
        return headers

    def body(self, number: int) -> dict[str, Any]:
        before = int(self.workload.after[number])
        messages, spoken = self._said.get(before, ([], 0)) if before != NONE else ([], 0)
        added = self._prompts.first(number) if before == NONE else self._prompts.next(number, spoken)
        messages = [*messages, {"role": "user", "content": added}]
        self._said[number] = messages, int(self.workload.input_tokens[number])
        body: dict[str, Any] = {
            "model": self.terms.models[number % len(self.terms.models)],
            "max_tokens": int(self.workload.output_tokens[number]),
            "temperature": 0.0,
        }
        if not self.terms.stop_early:
            body["ignore_eos"] = True
        if self.terms.api == "chat":
            body["messages"] = messages
        else:
            body["prompt"] = "\n".join(message["content"] for message in messages)
        return body | self.terms.body


@dataclass(slots=True)
class Drive:
    """One run. `now` is the run's clock; `start` sets its zero, the first moment of the schedule, once all is ready."""

    workload: Workload
    terms: Terms
    wire: Wire
    now: Callable[[], float]
    seed: int = 0
    tick: Callable[[Record], None] = lambda _: None
    start: Callable[[], None] = lambda: None
    records: list[Record] = field(default_factory=list)
    _script: Script = field(init=False)

    def __post_init__(self) -> None:
        self._script = Script(self.workload, self.terms, self.seed)

    async def open_loop(self) -> list[Record]:
        """Each request is sent when it is due, however many are under way. A program's next call is due its pause after
        the answer before it."""
        script = self._script
        due = [(float(self.workload.arrival_s[number]), number) for number in script.firsts]
        heapq.heapify(due)
        bodies = {number: script.body(number) for _, number in due}
        changed, running = asyncio.Event(), 0
        self.start()

        async def one(at_s: float, number: int) -> None:
            nonlocal running
            try:
                record, following = await self._ask(at_s, number, bodies.pop(number))
                for follower in following:
                    bodies[follower] = script.body(follower)
                    heapq.heappush(due, (record.ended_s + float(self.workload.think_s[follower]), follower))
            finally:
                running -= 1
                changed.set()

        async with asyncio.TaskGroup() as group:
            while due or running:
                wait_s = due[0][0] - self.now() if due else None
                if wait_s is None or wait_s > 0:
                    changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await changed.wait()
                    continue
                running += 1
                group.create_task(one(*heapq.heappop(due)))
                # Others get their turn even when a thousand requests are due at once.
                await asyncio.sleep(0)
        return self.records

    async def closed_loop(self, concurrency: int, until_s: float = float("inf")) -> list[Record]:
        """So many clients, each of which sends its next request when its last one has ended; programs in their order, with
        their pauses. Nothing is begun after until_s; a program that is under way goes on to its end."""
        waiting, think_s = iter(self._script.firsts), self.workload.think_s
        self.start()
        await asyncio.sleep(-self.now())

        async def client() -> None:
            for first in waiting:
                if self.now() >= until_s:
                    return
                next_ones = [first]
                while next_ones:
                    number = next_ones.pop()
                    if number != first:
                        await asyncio.sleep(float(think_s[number]))
                    _, following = await self._ask(self.now(), number, self._script.body(number))
                    next_ones += reversed(following)

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return self.records

    async def _ask(self, at_s: float, number: int, body: dict[str, Any]) -> tuple[Record, list[int]]:
        """The record, and the requests that may follow."""
        script = self._script
        record = script.record(number, at_s)
        self.records.append(record)
        headers, keep = script.headers(number), script.keeps(number)
        text = await within(self.wire, self.terms.timeout_s, body, record, headers, keep_text=keep)
        following = script.heard(record, text)
        self.tick(record)
        if not record.ok:
            for lost in script.lost(number, self.now()):
                self.records.append(lost)
                self.tick(lost)
        return record, following
