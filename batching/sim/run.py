"""`simulate`: a workload through one engine, and what became of every request."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from burrstone.batching.core.requests import NEVER_S
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.drive import EVENT, OFFER, OUTCOME, PROGRESS, Run, abandon, drive
from burrstone.batching.sim.measures import Latencies, latencies
from burrstone.batching.sim.spec import EngineSpec, new_world
from burrstone.batching.sim.traffic.workload_types import NONE, Floats, Ints, Prefixes, Workload
from burrstone.batching.sim.world import FINISHED, NOWHERE, World

Mode = Literal["exact", "macro"]
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Result:
    """One entry a request, in the workload's order; times are NEVER_S (-1) where a request did not get so far."""

    arrival_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    ended_s: Floats
    output_tokens: Ints
    cached_tokens: Ints
    preemptions: Ints
    finished: np.ndarray  # bool; the others were cancelled
    makespan_s: float  # when the engine came to rest
    busy_s: float
    steps: int
    num_preemptions: int
    hit_tokens: int  # of asked_tokens, found in the prefix cache; both count resumed requests again
    asked_tokens: int
    outcome_hash: int  # of admissions, preemptions and ends in order; equal in both modes
    plan_hash: int  # of every decision; macro mode takes fewer
    mean_engines: float | None = None  # with autoscaling, that were starting, up or draining while requests came

    def latencies(self, workload: Workload) -> Latencies:
        """What the requests of the workload waited, and who kept its SLOs."""
        return latencies(workload, self.arrival_s, self.first_token_s, self.ended_s, self.finished)


def simulate(
    spec: EngineSpec, workload: Workload, mode: Mode = "macro", on_progress: Callable[[int], None] | None = None
) -> Result:
    """Serve the workload on one engine. `exact` takes every step alone, `macro` skips those that decide nothing; both
    give the same result to the last bit. on_progress is told now and then how many requests have ended.
    """
    if mode not in ("exact", "macro"):
        raise UsageError(f"simulate: mode must be 'exact' or 'macro', got {mode!r}")
    check_fits(spec, workload)
    world = world_of(spec, workload)
    run = run_of(workload, spec.block_size)
    while drive(world, run, mode == "macro", _CHUNK):
        if on_progress is not None:
            on_progress(int(run.progress[0]["ended"]))
    abandon(run)
    return result_of(world, run)


def check_fits(spec: EngineSpec, workload: Workload) -> None:
    """Raises UsageError when a request could never run, however empty the engine."""
    if len(workload) == 0:
        return
    tokens = workload.input_tokens + workload.output_tokens - 1
    blocks = -(-tokens // spec.block_size)
    worst = int(np.argmax(blocks))
    if blocks[worst] > spec.num_blocks:
        raise UsageError(
            f"request {worst} of the workload needs {blocks[worst]} KV blocks, the engine has num_blocks = "
            f"{spec.num_blocks}; give it more or leave the request out"
        )


def world_of(spec: EngineSpec, workload: Workload) -> World:
    """One idle engine with room for the whole workload."""
    size = max(len(workload), 1)
    longest = int((workload.input_tokens + workload.output_tokens).max()) if len(workload) else 1
    prefixes = workload.prefixes
    if prefixes is not None and spec.prefix_caching and prefixes.block_tokens % spec.block_size:
        raise UsageError(
            f"prefixes: block_tokens ({prefixes.block_tokens}) must be a multiple of block_size ({spec.block_size})"
        )
    return new_world(
        spec,
        num_engines=1,
        num_rows=size,
        num_waiting=size,
        tenant_weight=workload.tenant_weight,
        blocks_per_sequence=longest // spec.block_size + 1,
        block_hashes=None if prefixes is None else prefixes.hashes,
        hash_tokens=spec.block_size if prefixes is None else prefixes.block_tokens,
        num_programs=len(np.unique(workload.program)),
    )


def run_of(workload: Workload, block_size: int) -> Run:
    """The workload before its first request."""
    size = len(workload)
    offers = np.zeros(size, OFFER)
    for name in OFFER.names or ():
        if hasattr(workload, name):
            offers[name] = getattr(workload, name)
    offers["weight"] = workload.tenant_weight[workload.tenant]
    programs, numbers = np.unique(workload.program, return_inverse=True)
    offers["program"] = np.where(workload.program >= 0, numbers, NONE)
    if workload.prefixes is not None:
        offers["hash_start"] = workload.prefixes.starts[:-1]
        offers["hashed_tokens"] = hashed_tokens(workload.prefixes, workload.input_tokens)
    first_follower = np.full(size, NOWHERE, np.int64)
    for offer in np.flatnonzero(workload.after >= 0)[::-1]:
        offers["next_sibling"][offer] = first_follower[workload.after[offer]]
        first_follower[workload.after[offer]] = offer
    outcomes = np.zeros(size, OUTCOME)
    for name in ("arrival_s", "scheduled_s", "first_token_s", "ended_s"):
        outcomes[name] = NEVER_S
    return Run(
        offers=offers,
        outcomes=outcomes,
        rows=np.full(size, NOWHERE, np.int64),
        first_follower=first_follower,
        program_arrival_s=np.full(len(programs) + 1, NEVER_S),
        events=np.zeros(2 * size + 1, EVENT),
        progress=np.zeros(1, PROGRESS),
    )


def hashed_tokens(prefixes: Prefixes, input_tokens: Ints) -> Ints:
    """Leading tokens that hashes cover. A last hash that the prompt ends in stands for the prompt's part only."""
    counts = np.diff(prefixes.starts)
    covered = counts * prefixes.block_tokens
    ends_within = (covered >= input_tokens) & (covered - prefixes.block_tokens < input_tokens)
    return np.where(ends_within, input_tokens, covered)


def result_of(world: World, run: Run) -> Result:
    """What has come of the workload; counters and hashes are those of the first engine."""
    engine = world.engines[0]
    columns: dict[str, Any] = {name: run.outcomes[name].copy() for name in OUTCOME.names or () if name != "outcome"}
    return Result(
        **columns,
        finished=run.outcomes["outcome"] == FINISHED,
        makespan_s=float(engine["now_s"]),
        busy_s=float(engine["busy_s"]),
        steps=int(engine["steps"]),
        num_preemptions=int(engine["preemptions"]),
        hit_tokens=int(engine["hit_tokens"]),
        asked_tokens=int(engine["asked_tokens"]),
        outcome_hash=int(engine["outcome_hash"]),
        plan_hash=int(engine["plan_hash"]),
    )
