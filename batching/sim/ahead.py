"""Engines that schedule one step ahead (vLLM's async_scheduling, its default on GPUs), alone or data-parallel.

While a step runs, the next one is decided already. So a request waits for the step that follows the running one, and a
request that has had its last token takes part in one more step. Data-parallel engines of a mixture-of-experts model
step together, for the experts are spread over all of them: they meet in every layer, so each part of a step takes as
long as it takes the engine that has most of it.
"""

from dataclasses import dataclass

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.requests import NEVER_S
from burrstone.batching.core.step_noise import noise_ratio
from burrstone.batching.core.step_time import step_seconds
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.drive import fill
from burrstone.batching.sim.engine import add, complete, finish, schedule
from burrstone.batching.sim.run import check_fits, run_of
from burrstone.batching.sim.spec import EngineSpec, new_world
from burrstone.batching.sim.traffic.workload_types import Floats, Ints, Workload
from burrstone.batching.sim.world import World

# vLLM's balancer counts a waiting request as so many running ones.
_WAITING_WEIGHT = 4

# When a request got so far, and what all steps until then had to compute, in the terms of the step model.
MARKS = np.dtype(
    [
        ("queued_s", np.float64),
        ("first_token_s", np.float64),
        ("last_token_s", np.float64),
        ("queued_work", np.float64, (5,)),
        ("first_work", np.float64, (5,)),
        ("last_work", np.float64, (5,)),
    ]
)


@dataclass(frozen=True, slots=True)
class AheadResult:
    """One entry a request, in the workload's order. queued_s: when its engine took it in, between two steps.

    ttft_parts, tpot_parts: [requests, 5], what its TTFT and TPOT are made of: times the coefficients they are seconds,
    where steps do not scatter.
    """

    queued_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    preemptions: Ints
    ttft_parts: Floats
    tpot_parts: Floats


def simulate_ahead(spec: EngineSpec, workload: Workload, num_engines: int = 1) -> AheadResult:
    """Serve the workload step by step. A request goes to the least loaded of the engines, as vLLM's balancer does."""
    if num_engines < 1:
        raise UsageError(f"simulate: num_engines must be >= 1, got {num_engines}")
    if np.any(workload.after >= 0) or np.any(np.isfinite(workload.cancel_s)) or spec.pins_programs:
        raise UsageError("simulate: engines that schedule ahead take no programs and no cancellations; leave them out")
    check_fits(spec, workload)
    size = len(workload)
    longest = int((workload.input_tokens + workload.output_tokens).max()) if size else 1
    world = new_world(
        spec,
        num_engines=num_engines,
        num_rows=max(size, 1),
        num_waiting=max(size, 1),
        tenant_weight=workload.tenant_weight,
        blocks_per_sequence=longest // spec.block_size + 2,
        hash_tokens=spec.block_size,
    )
    marks = np.zeros(size, MARKS)
    marks["first_token_s"] = marks["last_token_s"] = NEVER_S
    _serve(world, run_of(workload, spec.block_size).offers, marks)
    gaps = np.maximum(workload.output_tokens - 1, 1)[:, None]
    return AheadResult(
        queued_s=marks["queued_s"].copy(),
        first_token_s=marks["first_token_s"].copy(),
        last_token_s=marks["last_token_s"].copy(),
        preemptions=world.requests["preemptions"][:size].copy(),
        ttft_parts=marks["first_work"] - marks["queued_work"],
        tpot_parts=(marks["last_work"] - marks["first_work"]) / gaps,
    )


@kernel
def _serve(world: World, offers: np.ndarray, marks: np.ndarray) -> None:
    """Run until all offers have ended. A request's row is its place in offers."""
    engines = world.engines
    work = np.zeros(5)
    queued = 0  # offers taken in
    decided = 0  # of these, those that a step can be decided with
    while True:
        busy = 0
        for e in range(len(engines)):
            busy += engines[e]["num_waiting"] + engines[e]["num_running"]
        if busy == 0 and decided == queued:
            if queued == len(offers):
                return
            for e in range(len(engines)):
                engines[e]["now_s"] = max(engines[e]["now_s"], offers[queued]["arrival_s"])
            queued = _take_in(offers, queued, engines[0]["now_s"], work, marks)
        for row in range(decided, queued):
            fill(world, row, row, offers[row], offers[row]["arrival_s"], offers[row]["arrival_s"])
            add(world, _least_loaded(engines), row)
        decided = queued
        queued = _take_in(offers, queued, engines[0]["now_s"], work, marks)
        _step_together(world, work)
        for e in range(len(engines)):
            _mark_tokens(world, e, work, marks)


@kernel
def _take_in(offers: np.ndarray, queued: int, now_s: float, work: np.ndarray, marks: np.ndarray) -> int:
    """Who has come by now is queued now; returns how many are."""
    while queued < len(offers) and offers[queued]["arrival_s"] <= now_s:
        marks[queued]["queued_s"] = now_s
        marks[queued]["queued_work"][:] = work
        queued += 1
    return queued


@kernel
def _least_loaded(engines: np.ndarray) -> int:
    """The engine with the least waiting and running, the first of equals."""
    best = 0
    least = -1
    for e in range(len(engines)):
        load = _WAITING_WEIGHT * engines[e]["num_waiting"] + engines[e]["num_running"]
        if least < 0 or load < least:
            best = e
            least = load
    return best


@kernel
def _step_together(world: World, work: np.ndarray) -> None:
    """One step of all engines, added to work."""
    engines = world.engines
    prefill_tokens, decode_seqs, kv_tokens, attention_pairs = 0.0, 0.0, 0.0, 0.0
    for e in range(len(engines)):
        engine = engines[e]
        if engine["num_waiting"] + engine["num_running"] == 0:
            continue
        schedule(world, e, engine["neutral"] == 0)
        # Those whose last token came with the step before have been scheduled once more, and leave now.
        finish(world, e)
        engine["num_ended"] = 0
        prefill_tokens = max(prefill_tokens, engine["prefill_tokens"])
        decode_seqs = max(decode_seqs, engine["decode_seqs"])
        kv_tokens = max(kv_tokens, engine["kv_tokens"])
        attention_pairs = max(attention_pairs, engine["attention_pairs"])
    work += np.array([1.0, prefill_tokens, decode_seqs, kv_tokens, attention_pairs])
    seconds = step_seconds(engines[0]["model"], prefill_tokens, decode_seqs, kv_tokens, attention_pairs)
    seconds *= noise_ratio(world.step_ratios, engines[0]["noise_seed"], int(work[0]))
    now_s = engines[0]["now_s"] + seconds
    for e in range(len(engines)):
        engines[e]["now_s"] = now_s
        if engines[e]["num_running"] > 0:
            complete(world, e)


@kernel
def _mark_tokens(world: World, e: int, work: np.ndarray, marks: np.ndarray) -> None:
    """Note whose first and whose last token this step has brought."""
    now_s = world.engines[e]["now_s"]
    for place in range(world.engines[e]["num_running"]):
        row = world.queues[e, place]
        request = world.requests[row]
        if marks[row]["first_token_s"] == NEVER_S and request["output_tokens"] > 0:
            marks[row]["first_token_s"] = now_s
            marks[row]["first_work"][:] = work
        if marks[row]["last_token_s"] == NEVER_S and request["output_tokens"] == world.jobs[row]["target_tokens"]:
            marks[row]["last_token_s"] = now_s
            marks[row]["last_work"][:] = work
