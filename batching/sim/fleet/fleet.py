"""`simulate_fleet`: a router and its engines under a load, with engines that fail and a number of them that follows it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from burrstone.batching.core.requests import NEVER_S
from burrstone.batching.errors import UsageError
from burrstone.batching.routing.memory import DECISION, new_memory
from burrstone.batching.routing.spec import RouterSpec
from burrstone.batching.routing.views import new_views
from burrstone.batching.sim.drive import OUTCOME
from burrstone.batching.sim.fleet import kernels
from burrstone.batching.sim.fleet.histogram import NUM_BUCKETS, quantile
from burrstone.batching.sim.run import check_fits, run_of
from burrstone.batching.sim.spec import EngineSpec, new_world
from burrstone.batching.sim.traffic.workload_types import NONE, Workload
from burrstone.batching.sim.world import World

_REPORT_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """So many engines, from this one on, are gone at at_s and back for_s later, with nothing in them."""

    at_s: float
    for_s: float
    engines: int = 1
    first: int = 0


@dataclass(frozen=True, slots=True)
class Autoscale:
    """Every period_s: as many engines as hold per_engine requests each; a new one takes start_s to come up.

    An engine that is not needed any more gets no new requests, and costs until it is empty. One that has failed is
    replaced, and costs nothing until it is back.
    """

    per_engine: float
    least: int = 1
    period_s: float = 10.0
    start_s: float = 120.0


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """`engines` equal engines behind a router; with autoscaling, at most so many. view_period_s: how old the router's
    views may be; 0 for fresh ones. Raises UsageError for what is not simulated."""

    engine: EngineSpec
    engines: int
    router: RouterSpec
    failures: tuple[Failure, ...] = ()
    autoscale: Autoscale | None = None
    view_period_s: float = 0.0
    rows_per_engine: int = 64  # requests in the fleet at a time, on average

    def __post_init__(self) -> None:
        if self.engines < 1 or self.rows_per_engine < 1:
            raise UsageError("fleet: engines and rows_per_engine must be >= 1")
        if self.engine.prefix_caching:
            raise UsageError("prefixes are not followed through a fleet: turn prefix caching off (--no-prefix-caching)")
        if self.router.name == "min-ttft":
            raise UsageError("min-ttft routes by prefixes, which are not followed through a fleet: use another router")
        for failure in self.failures:
            if not 0 <= failure.first <= failure.first + failure.engines <= self.engines:
                raise UsageError(f"fleet: a failure names engines beyond the {self.engines} there are")
            if failure.at_s < 0 or failure.for_s < 0:
                raise UsageError("fleet: at_s and for_s of a failure must be >= 0")


@dataclass(frozen=True, slots=True)
class Stream:
    """Poisson arrivals at `rate` for duration_s, each a request of the workload drawn at random."""

    workload: Workload
    rate: float
    duration_s: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FleetResult:
    """Counts by tenant ([tenants] of TALLY), latencies as histograms [tenants, (TTFT, TPOT, E2E), buckets], and, where a
    workload was replayed, what became of each request ([requests] of OUTCOME)."""

    tallies: np.ndarray
    histograms: np.ndarray
    outcomes: np.ndarray
    mean_engines: float  # that were starting, up or draining, while requests came
    makespan_s: float
    steps: int
    preemptions: int
    engines: np.ndarray  # [engines] of ENGINE, as they came to rest

    @property
    def attainment(self) -> float:
        """Share of the offered requests that kept their SLOs."""
        offered = int(self.tallies["offered"].sum())
        return int(self.tallies["good"].sum()) / offered if offered else 1.0

    def quantile_s(self, kind: int, share: float) -> float:
        """A quantile over all tenants; kind: kernels.TTFT, TPOT or E2E."""
        return quantile(self.histograms[:, kind].sum(axis=0), share)


@dataclass(slots=True)
class _Power:
    """Which engines are up, and what that has cost until now."""

    engines: int
    needed: np.ndarray  # [engines] bool: up or starting; the others drain or are off
    broken: np.ndarray  # [engines] int, how many failures hold it down
    ready_s: np.ndarray  # [engines], when it has started
    engine_s: float = 0.0
    counted_s: float = 0.0
    due: list[tuple[float, int, Failure]] = field(default_factory=list)  # (when, +1 breaks or -1 mends, which)


def simulate_fleet(
    spec: FleetSpec, load: Workload | Stream, on_progress: Callable[[float], None] | None = None
) -> FleetResult:
    """Serve the load to its last token. on_progress is told the simulated time. Requests must not follow one another."""
    workload = load.workload if isinstance(load, Stream) else load
    if (workload.after != NONE).any() or np.isfinite(workload.cancel_s).any():
        raise UsageError("fleet: agent programs and clients that leave are simulated on one engine only")
    check_fits(spec.engine, workload)
    world, fleet, power = _world(spec, workload), _fleet(spec, load, workload), _power(spec)
    end_s = load.duration_s if isinstance(load, Stream) else float(workload.arrival_s[-1]) + 1e-9
    now_s = 0.0
    while True:
        _count(power, world, min(now_s, end_s))
        _switch(world, fleet, spec, power, now_s)
        # What mends after the last request has come, and has an engine, changes nothing any more.
        if now_s >= end_s and fleet.clock[0]["homeless"] == 0 and all(change < 0 for _, change, _ in power.due):
            break
        if now_s >= end_s:
            fleet.clock[0]["next_s"] = np.inf
        now_s = _next_stop(spec, power, now_s, end_s)
        kernels.act(world, fleet, kernels.SERVE, 0, min(now_s, end_s))
        if on_progress is not None:
            on_progress(min(now_s, end_s))
    kernels.act(world, fleet, kernels.SETTLE, 0, np.inf)
    makespan_s = float(world.engines["now_s"].max())
    return FleetResult(
        tallies=fleet.tallies,
        histograms=fleet.histograms,
        outcomes=fleet.outcomes,
        mean_engines=power.engine_s / power.counted_s if power.counted_s > 0 else float(power.needed.sum()),
        makespan_s=makespan_s,
        steps=int(world.engines["steps"].sum()),
        preemptions=int(world.engines["preemptions"].sum()),
        engines=world.engines,
    )


def _world(spec: FleetSpec, workload: Workload) -> World:
    rows = spec.engines * spec.rows_per_engine
    # A queue that outgrows this is a fleet that is far behind; it is told so by an error.
    return new_world(
        spec.engine, spec.engines, max(rows, 4096), max(4 * spec.rows_per_engine, 4096 // spec.engines),
        workload.tenant_weight,
    )  # fmt: skip


def _fleet(spec: FleetSpec, load: Workload | Stream, workload: Workload) -> kernels.Fleet:
    streaming = isinstance(load, Stream)
    clock = np.zeros(1, kernels.CLOCK)
    clock["rate"] = load.rate if isinstance(load, Stream) else 0.0
    clock["seed"] = load.seed if isinstance(load, Stream) else 0
    clock["next_s"] = 0.0 if streaming else (workload.arrival_s[0] if len(workload) else np.inf)
    clock["view_period_s"] = spec.view_period_s
    clock["looked_s"] = -np.inf
    outcomes = np.zeros(0 if streaming else len(workload), OUTCOME)
    for name in ("arrival_s", "scheduled_s", "first_token_s", "ended_s"):
        outcomes[name] = NEVER_S
    return kernels.Fleet(
        clock=clock,
        offers=run_of(workload, spec.engine.block_size).offers,
        views=new_views(spec.engines),
        router=np.array([spec.router.record()]),
        memory=new_memory(spec.engines, ring=8),
        decision=np.zeros(1, DECISION),
        no_hashes=np.empty(0, np.uint64),
        homeless=np.zeros(max(spec.engines * spec.rows_per_engine, 4096), np.int64),
        tallies=np.zeros(workload.num_tenants, kernels.TALLY),
        histograms=np.zeros((workload.num_tenants, 3, NUM_BUCKETS), np.int64),
        outcomes=outcomes,
    )


def _power(spec: FleetSpec) -> _Power:
    up = spec.engines if spec.autoscale is None else min(spec.autoscale.least, spec.engines)
    due = [(failure.at_s, 1, failure) for failure in spec.failures]
    due += [(failure.at_s + failure.for_s, -1, failure) for failure in spec.failures]
    return _Power(
        engines=spec.engines,
        needed=np.arange(spec.engines) < up,
        broken=np.zeros(spec.engines, np.int64),
        ready_s=np.zeros(spec.engines),
        due=sorted(due, key=lambda event: event[:2]),
    )


def _next_stop(spec: FleetSpec, power: _Power, now_s: float, end_s: float) -> float:
    """The next time at which engines are switched, or progress is told."""
    stops = [now_s + _REPORT_EVERY_S, end_s] if now_s < end_s else []
    if power.due:
        stops.append(power.due[0][0])
    starting = power.ready_s[power.needed & (power.ready_s > now_s)]
    stops += [float(starting.min())] if len(starting) else []
    if spec.autoscale is not None:
        stops.append(now_s + spec.autoscale.period_s)
    return max(min(stops, default=np.inf), now_s)


def _switch(world: World, fleet: kernels.Fleet, spec: FleetSpec, power: _Power, now_s: float) -> None:
    """Failures and mendings that are due, and as many engines as the load asks for."""
    lost = np.zeros(power.engines, np.bool_)
    while power.due and power.due[0][0] <= now_s:
        _, change, failure = power.due.pop(0)
        engines = slice(failure.first, failure.first + failure.engines)
        power.broken[engines] += change
        lost[engines] |= change > 0
    if spec.autoscale is not None:
        _scale(world, fleet, spec.autoscale, power, now_s)
    alive = power.needed & (power.broken == 0) & (power.ready_s <= now_s)
    # An engine that is back at once must be empty before it gets anything, or it would be sent what it has just lost.
    fleet.views["alive"] = alive & ~lost
    for e in np.flatnonzero(lost):
        kernels.act(world, fleet, kernels.LOSE, e, now_s)
    fleet.views["alive"] = alive
    if alive.any() and fleet.clock[0]["homeless"] > 0:
        kernels.act(world, fleet, kernels.HOUSE, 0, now_s)


def _scale(world: World, fleet: kernels.Fleet, rule: Autoscale, power: _Power, now_s: float) -> None:
    held = kernels.act(world, fleet, kernels.SETTLE, 0, now_s) + int(fleet.clock[0]["homeless"])
    wanted = min(max(int(np.ceil(held / rule.per_engine)), rule.least), power.engines)
    whole = power.broken == 0
    there = np.flatnonzero(power.needed & whole)
    if wanted > len(there):
        new = np.flatnonzero(~power.needed & whole)[: wanted - len(there)]
        power.needed[new] = True
        power.ready_s[new] = np.where(_busy(world)[new], now_s, now_s + rule.start_s)
    elif wanted < len(there):
        power.needed[there[wanted:]] = False


def _count(power: _Power, world: World, now_s: float) -> None:
    """Add up what engines cost since the last time: those that are needed, and those that are not empty yet."""
    cost = (power.needed & (power.broken == 0)) | _busy(world)
    power.engine_s += float(cost.sum()) * max(now_s - power.counted_s, 0.0)
    power.counted_s = max(now_s, power.counted_s)


def _busy(world: World) -> np.ndarray:
    busy: np.ndarray = (world.engines["num_waiting"] + world.engines["num_running"]) > 0
    return busy
