"""Several engines behind one router, for `sim run --engines` and `sim fleet`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from burrstone.batching.core.hashing import SEED, fold
from burrstone.batching.errors import UsageError
from burrstone.batching.routing.spec import RouterSpec
from burrstone.batching.sim.cli.traffic import roots
from burrstone.batching.sim.fleet.fleet import Autoscale, Failure, FleetSpec, simulate_fleet
from burrstone.batching.sim.run import Mode, Result, simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.batching.sim.world import FINISHED

_COLUMNS = (
    *("arrival_s", "scheduled_s", "first_token_s", "ended_s"),
    *("output_tokens", "cached_tokens", "preemptions", "finished"),
)


@dataclass(frozen=True, slots=True)
class Changes:
    """What happens to the engines."""

    failures: tuple[Failure, ...] = ()
    autoscale: Autoscale | None = None

    def __bool__(self) -> bool:
        return bool(self.failures) or self.autoscale is not None


NO_CHANGES = Changes()


def serve(
    mode: Mode,
    spec: EngineSpec,
    router: RouterSpec,
    engines: int,
    workload: Workload,
    on_progress: Callable[[int], None],
    changes: Changes = NO_CHANGES,
) -> Result:
    """What becomes of the workload on these engines. Raises UsageError for what is not simulated."""
    if changes or (engines > 1 and router.name != "round-robin"):
        return _behind_router(spec, router, engines, workload, on_progress, changes)
    if engines == 1:
        return simulate(spec, workload, mode, on_progress)
    return _in_turn(mode, spec, engines, workload, on_progress)


def _behind_router(
    spec: EngineSpec,
    router: RouterSpec,
    engines: int,
    workload: Workload,
    on_progress: Callable[[int], None],
    changes: Changes,
) -> Result:
    """A router that looks at its engines, or engines that come and go. Steps are skipped in either mode, which changes nothing."""
    size = len(workload)
    # Sessions may all fall to one engine, whose queue holds four times as many; so may all requests, while others are gone.
    rows = -(-size // (min(engines, 4) if router.name == "session" or changes else engines))
    try:
        fleet_spec = FleetSpec(
            spec, engines, router, failures=changes.failures, autoscale=changes.autoscale, rows_per_engine=max(rows, 1)
        )
        fleet = simulate_fleet(fleet_spec, workload, lambda now_s: on_progress(_arrived(workload, now_s)))
    except UsageError as error:
        flags = "--fail, --autoscale" if changes else f"--router {router.name}"
        raise UsageError(f"{flags}: {error}") from error
    columns: dict[str, Any] = {name: fleet.outcomes[name] for name in _COLUMNS if name != "finished"}
    counters = fleet.engines
    return Result(
        **columns,
        finished=fleet.outcomes["outcome"] == FINISHED,
        makespan_s=fleet.makespan_s,
        busy_s=float(counters["busy_s"].sum()),
        steps=fleet.steps,
        num_preemptions=fleet.preemptions,
        hit_tokens=int(counters["hit_tokens"].sum()),
        asked_tokens=int(counters["asked_tokens"].sum()),
        outcome_hash=_folded(counters["outcome_hash"].tolist()),
        plan_hash=_folded(counters["plan_hash"].tolist()),
        mean_engines=None if changes.autoscale is None else fleet.mean_engines,
    )


def _arrived(workload: Workload, now_s: float) -> int:
    return int(np.searchsorted(workload.arrival_s, now_s))


def _in_turn(
    mode: Mode,
    spec: EngineSpec,
    engines: int,
    workload: Workload,
    on_progress: Callable[[int], None],
) -> Result:
    """Round-robin needs no view of the engines, so each can be simulated alone. Programs stay on their engine."""
    first = roots(workload.after)
    turn = np.cumsum(first == np.arange(len(first)))[first] % engines
    parts = [rows for rows in (np.flatnonzero(turn == engine) for engine in range(engines)) if len(rows)]
    results, done = [], 0
    for rows in parts:
        results.append(simulate(spec, workload.take(rows), mode))
        done += len(rows)
        on_progress(done)
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        columns[name] = np.empty(len(workload), getattr(results[0], name).dtype)
        for rows, result in zip(parts, results, strict=True):
            columns[name][rows] = getattr(result, name)
    sums = ("busy_s", "steps", "num_preemptions", "hit_tokens", "asked_tokens")
    return Result(
        **columns,
        **{name: sum(getattr(result, name) for result in results) for name in sums},
        makespan_s=max(result.makespan_s for result in results),
        outcome_hash=_folded([result.outcome_hash for result in results]),
        plan_hash=_folded([result.plan_hash for result in results]),
    )


def _folded(hashes: list[int]) -> int:
    """One hash of all engines', in their order."""
    folded = SEED
    for value in hashes:
        folded = np.uint64(fold(folded, np.uint64(value).astype(np.int64)))
    return int(folded)
