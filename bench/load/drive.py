"""Offering a workload to a server: open loop, where arrivals wait for nobody, or closed, where so many clients take turns."""

import asyncio
import contextlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(slots=True)
class Drive:
    """One run. `now` is the run's clock, whose zero is the first moment of the schedule."""

    workload: Workload
    terms: Terms
    wire: Wire
    now: Callable[[], float]
    seed: int = 0
    tick: Callable[[Record], None] = lambda _: None
    records: list[Record] = field(default_factory=list)
    _said: dict[int, tuple[list[Message], int]] = field(default_factory=dict)

    async def open_loop(self) -> list[Record]:
        """Each request is sent when it is due, however many are under way. A program's next call is due its pause after
        the answer before it."""
        prompts, follows = Prompts(self.workload, self.seed), followers(self.workload)
        due = [
            (float(at_s), number)
            for number, at_s in enumerate(self.workload.arrival_s)
            if self.workload.after[number] == NONE
        ]
        heapq.heapify(due)
        bodies = {number: self._body(number, prompts) for _, number in due}
        changed, running = asyncio.Event(), 0

        async def one(at_s: float, number: int) -> None:
            nonlocal running
            try:
                record = await self._ask(at_s, number, bodies.pop(number), keep=number in follows)
                if not record.ok:
                    self._lose(number, follows)
                    return
                for follower in follows.get(number, ()):
                    bodies[follower] = self._body(follower, prompts)
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

    async def closed_loop(self, concurrency: int) -> list[Record]:
        """So many clients, each of which sends its next request when its last one has ended; programs in their order."""
        prompts, follows = Prompts(self.workload, self.seed), followers(self.workload)
        waiting = iter([number for number in range(len(self.workload)) if self.workload.after[number] == NONE])

        async def client() -> None:
            for first in waiting:
                next_ones = [first]
                while next_ones:
                    number = next_ones.pop()
                    record = await self._ask(self.now(), number, self._body(number, prompts), keep=number in follows)
                    if record.ok:
                        next_ones += reversed(follows.get(number, []))
                    else:
                        self._lose(number, follows)

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return self.records

    async def _ask(self, at_s: float, number: int, body: dict[str, Any], *, keep: bool) -> Record:
        record = self._record(number, at_s)
        self.records.append(record)
        headers = self._headers(number)
        text = await within(self.wire, self.terms.timeout_s, body, record, headers, keep_text=keep)
        messages, spoken = self._said.pop(number)
        if keep and record.ok:
            said: list[Message] = [*messages, {"role": "assistant", "content": text}]
            self._said[number] = said, spoken + int(self.workload.output_tokens[number])
        self.tick(record)
        return record

    def _lose(self, number: int, follows: dict[int, list[int]]) -> None:
        """What would have followed was offered too, and is as bad as what failed."""
        for follower in follows.get(number, ()):
            record = self._record(follower, self.now())
            record.error = "the call before it failed"
            self.records.append(record)
            self.tick(record)
            self._lose(follower, follows)

    def _record(self, number: int, at_s: float) -> Record:
        workload = self.workload
        tenant = int(workload.tenant[number])
        slo = Slo(*(float(column[number]) for column in (workload.ttft_s, workload.tpot_s, workload.e2e_s)))
        program = int(workload.program[number])
        name = self.terms.tenants[tenant] if tenant < len(self.terms.tenants) else str(tenant)
        return Record(number, at_s, name, None if program == NONE else program, slo)

    def _headers(self, number: int) -> dict[str, str]:
        headers = {}
        if self.terms.keys:
            key = self.terms.keys[int(self.workload.tenant[number]) % len(self.terms.keys)]
            headers["Authorization"] = f"Bearer {key}"
        if (program := int(self.workload.program[number])) != NONE:
            headers["x-session-id"] = f"bench-{self.seed}-{program}"
        return headers

    def _body(self, number: int, prompts: Prompts) -> dict[str, Any]:
        before = int(self.workload.after[number])
        messages, spoken = self._said.get(before, ([], 0)) if before != NONE else ([], 0)
        added = prompts.first(number) if before == NONE else prompts.next(number, spoken)
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
