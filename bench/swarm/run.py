"""One locust process's part of a run: it sends its share of the workload, and counts what becomes of it."""

import argparse
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
import numpy as np
from gevent.event import Event
from gevent.pool import Group

from burrstone.batching.sim.cli.traffic import roots
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.load.drive import Script, Terms
from burrstone.bench.load.flags import offered_by, terms_of, traffic_of, url_of
from burrstone.bench.load.record import Record
from burrstone.bench.swarm.shapes import mean_rate, shaped
from burrstone.bench.swarm.tally import Tally
from burrstone.bench.swarm.wires import GreenGrpc, GreenHttp, GreenWire, ask_within

_LEAD_S = 0.5
# How soon a schedule or a pause sees that it is to stop.
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Share:
    """Of all requests, those whose place divided by `of` leaves `index`; programs stay whole."""

    index: int = 0
    of: int = 1

    def part(self, firsts: list[int]) -> list[int]:
        return firsts[self.index :: self.of]


class Offer:
    """What is offered by the flags; the same in all processes. Raises UsageError."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        open_loop = arguments.mode == "open"
        self._mean = mean_rate(arguments.shape) if open_loop else 1.0
        steady = {"duration_s": arguments.duration_s * self._mean}
        self._traffic = traffic_of(argparse.Namespace(**vars(arguments) | steady))
        self.terms: Terms = terms_of(arguments, self._traffic.tenant_names)
        self.first = self.workload(arguments.seed)

    def workload(self, seed: int) -> Workload:
        arguments = argparse.Namespace(**vars(self._arguments) | {"seed": seed})
        made = offered_by(self._traffic, arguments, arguments.rate)
        return shaped(made, arguments.shape, arguments.duration_s) if arguments.mode == "open" else made

    def rounds(self) -> Iterator[Script]:
        """For a closed loop: one round of the workload after the other, with other texts, and one alone where
        --num-requests says how many. The first is an open loop's."""
        seed, text_seed = self._arguments.seed, self._arguments.text_seed
        yield Script(self.first, self.terms, text_seed)
        while self._arguments.num_requests is None:
            seed, text_seed = seed + 1, text_seed + 1
            yield Script(self.workload(seed), self.terms, text_seed)


def held(script: Script, share: Share) -> dict[str, int]:
    """Tenant -> how many of the script's requests are the share's, those that follow others included."""
    mine = np.flatnonzero(np.isin(roots(script.workload.after), share.part(script.firsts)))
    _, place, count = np.unique(script.workload.tenant[mine], return_index=True, return_counts=True)
    names = [script.record(int(number), 0.0).tenant for number in mine[place]]
    return dict(zip(names, count.tolist(), strict=True))


class Run:
    """booked: called with each record when it is complete. `tallies`: tenant -> what became of its requests. `holds`: how
    many they are, with those still to come; of a closed loop, with those under way."""

    def __init__(self, arguments: argparse.Namespace, share: Share, booked: Callable[[Record], None]) -> None:
        self._arguments, self._share, self._booked = arguments, share, booked
        self._offer = Offer(arguments)
        wire = GreenGrpc if arguments.grpc else GreenHttp
        self._wire: GreenWire = wire(url_of(arguments), arguments.api, self.now)
        self._zero_s = time.perf_counter() + _LEAD_S
        self._firsts = self._mine()
        self._dispatched = False
        # Clients that are within a program.
        self._running = 0
        self._over = False
        self.tallies: dict[str, Tally] = {}
        self.holds: Counter[str] = Counter()
        if arguments.mode == "open":
            self._script = next(self._offer.rounds())
            self.holds.update(held(self._script, share))

    def now(self) -> float:
        """Seconds since the first moment of the schedule."""
        return time.perf_counter() - self._zero_s

    @property
    def done(self) -> bool:
        """Nothing more will be sent, and nothing is under way."""
        timed_out = self._arguments.mode == "closed" and self.now() >= self._arguments.duration_s
        return (self._over or timed_out) and not self._running

    def close(self) -> None:
        self._wire.close()

    def open_loop(self, stopping: Callable[[], bool]) -> None:
        """Send each request when it is due, however many are under way, in a greenlet of its own. Only the first call
        does: a process has one schedule."""
        if self._dispatched:
            return
        self._dispatched = True
        script, workload = self._script, self._script.workload
        due = [(float(workload.arrival_s[number]), number) for number in self._share.part(script.firsts)]
        heapq.heapify(due)
        bodies = {number: script.body(number) for _, number in due}
        changed, group = Event(), Group()
        self._zero_s = time.perf_counter() + _LEAD_S

        def one(at_s: float, number: int) -> None:
            record, following = self._ask(script, at_s, number, bodies.pop(number))
            for follower in following:
                bodies[follower] = script.body(follower)
                heapq.heappush(due, (record.ended_s + float(workload.think_s[follower]), follower))
            changed.set()

        try:
            while (due or group) and not (stopping() and not group):
                wait_s = due[0][0] - self.now() if due and not stopping() else _LOOK_S
                if wait_s > 0:
                    changed.clear()
                    changed.wait(min(wait_s, _LOOK_S))
                    continue
                group.spawn(one, *heapq.heappop(due))
                # Others get their turn even when a thousand requests are due at once.
                gevent.sleep(0)
        finally:
            group.kill()
            self._over = True

    def closed_loop(self, stopping: Callable[[], bool]) -> None:
        """One client: its next request is sent when its last one has ended; programs in their order, with their pauses.
        One that has begun goes on to its end, unless the client is to stop."""
        for script, first in self._firsts:
            self._running += 1
            try:
                self._program(script, first, stopping)
            finally:
                self._running -= 1
            if stopping():
                return
        self._over = True

    def _program(self, script: Script, first: int, stopping: Callable[[], bool]) -> None:
        next_ones = [first]
        while next_ones:
            number = next_ones.pop()
            body = script.body(number)
            at_s = self.now() + (0.0 if number == first else float(script.workload.think_s[number]))
            while (wait_s := at_s - self.now()) > 0 and not stopping():
                gevent.sleep(min(wait_s, _LOOK_S))
            if stopping():
                return
            _, following = self._ask(script, at_s, number, body)
            next_ones += reversed(following)

    def _mine(self) -> Iterator[tuple[Script, int]]:
        """A closed loop's requests, which its clients take in turns, as long as the run lasts."""
        for script in self._offer.rounds():
            for number in self._share.part(script.firsts):
                if self.now() >= self._arguments.duration_s:
                    return
                yield script, number

    def _ask(self, script: Script, at_s: float, number: int, body: dict[str, Any]) -> tuple[Record, list[int]]:
        """The record, and the requests that may follow."""
        record = script.record(number, at_s)
        self._taken_up(record)
        headers, keep = script.headers(number), script.keeps(number)
        text = ""
        try:
            text = ask_within(self._wire, script.terms.timeout_s, body, record, headers, keep_text=keep)
        finally:
            following = script.heard(record, text)
            self._book(record)
            if not record.ok:
                for lost in script.lost(number, self.now()):
                    self._taken_up(lost)
                    self._book(lost)
        return record, following

    def _taken_up(self, record: Record) -> None:
        if self._arguments.mode == "closed":
            self.holds[record.tenant] += 1

    def _book(self, record: Record) -> None:
        self.tallies.setdefault(record.tenant, Tally()).add(record)
        self._booked(record)
