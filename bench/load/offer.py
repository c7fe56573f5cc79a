"""One run: a plan is offered to a server, on a clock that starts when everything is ready to be sent."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.load.drive import Drive, Terms
from burrstone.bench.load.record import NOT_SENT, Record
from burrstone.bench.load.server_metrics import ServerMetrics, watching
from burrstone.bench.load.summary import duration_s, summarize
from burrstone.bench.load.wires import GrpcWire, HttpWire, Wire

_LEAD_S = 0.1
_NAP_S = 0.01
_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is offered, and where. `concurrency` None: open loop; else so many clients, who begin nothing after `until_s`.
    `seed` is of the texts."""

    workload: Workload
    terms: Terms
    url: str
    grpc: bool = False
    concurrency: int | None = None
    until_s: float = float("inf")
    seed: int = 0


@dataclass(slots=True)
class Offered:
    """What became of it. lag_p99_ms: how late this process came to what was due in it, which a closed loop's requests
    cannot show: their intended time is when it came to them. stopped: by Ctrl-C, before its end."""

    records: list[Record]
    lag_p99_ms: float
    server: ServerMetrics
    stopped: bool = False

    def summary(self) -> dict[str, Any]:
        """The figures of the run."""
        return summarize(self.records, duration_s(self.records), self.lag_p99_ms) | self.server.figures()


async def offer(plan: Plan, tick: Callable[[Record], None] = lambda _: None, *, watch: bool = False) -> Offered:
    """Make one run, on the running event loop. watch: also what the server says of itself meanwhile.

    Cancelled (as by Ctrl-C) after something has ended, it returns what there is; what was under way has failed.
    """
    raise_open_files_limit()
    clock = _Clock()
    wire: Wire = (GrpcWire if plan.grpc else HttpWire)(plan.url, plan.terms.api, clock.now)
    drive = Drive(plan.workload, plan.terms, wire, clock.now, plan.seed, tick, clock.start)
    try:
        async with _watched(plan, clock, watch) as seen, _lag() as lags_s:
            stopped = await _stopped(drive, plan)
    finally:
        await wire.close()
    return Offered(drive.records, _MS * float(np.percentile(lags_s or [0.0], 99)), seen, stopped)


def offer_whole(plan: Plan, tick: Callable[[Record], None] = lambda _: None) -> Offered:
    """Make one run, on an event loop of its own, for whoever has no use for a part of one: raises KeyboardInterrupt when it
    is stopped."""
    offered = asyncio.run(offer(plan, tick))
    if offered.stopped:
        raise KeyboardInterrupt
    return offered


async def _stopped(drive: Drive, plan: Plan) -> bool:
    """Drive the plan to its end; whether it was cancelled before."""
    try:
        if plan.concurrency is None:
            await drive.open_loop()
        else:
            await drive.closed_loop(plan.concurrency, plan.until_s)
    except asyncio.CancelledError:
        if not any(record.ok for record in drive.records):
            raise
        for record in drive.records:
            if record.error == NOT_SENT:
                record.error = "stopped"
        return True
    return False


class _Clock:
    """Seconds since the run's first moment, which `start` puts a little ahead of now."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._zero_s = self._clock()

    def now(self) -> float:
        return self._clock() - self._zero_s

    def start(self) -> None:
        self._zero_s = self._clock() + _LEAD_S


@contextlib.asynccontextmanager
async def _watched(plan: Plan, clock: _Clock, watch: bool) -> AsyncIterator[ServerMetrics]:
    if plan.grpc or not watch:
        yield ServerMetrics(missing="gRPC has no page of metrics" if plan.grpc else "not asked for")
        return
    key = plan.terms.keys[0] if plan.terms.keys else None
    async with watching(plan.url, key, clock.now) as seen:
        yield seen


@contextlib.asynccontextmanager
async def _lag() -> AsyncIterator[list[float]]:
    """How much too late naps end."""
    lags_s: list[float] = []
    clock = asyncio.get_running_loop().time

    async def nap() -> None:
        while True:
            due_s = clock() + _NAP_S
            await asyncio.sleep(_NAP_S)
            lags_s.append(clock() - due_s)

    task = asyncio.create_task(nap())
    try:
        yield lags_s
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def raise_open_files_limit() -> None:
    """Every request under way is a socket; the usual 1024 are few when a server stalls."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
