"""One engine, step by step, by vLLM 0.32's rules (v1/core/sched/scheduler.py): running requests first in list order, the
last one preempted where blocks run out, then waiting ones in order, as long as tokens, seats and blocks are left.

A step is `schedule`, which decides, and `complete`, which lets time pass and hands out tokens. Who ended stands in
world.ended until the caller has drained it, before the next step.
"""

import numpy as np

from burrstone.batching.core.hashing import fold
from burrstone.batching.core.kernel import kernel, lean_kernel
from burrstone.batching.core.requests import NEVER_S, RUNNING, WAITING
from burrstone.batching.core.step_noise import noise_ratio
from burrstone.batching.core.step_time import step_seconds
from burrstone.batching.policies.plan import on_admit, on_arrival, on_finish, on_preempt, on_served, plan, prefilling
from burrstone.batching.sim import kv, pins, queue
from burrstone.batching.sim.world import CANCELLED, FINISHED, NOWHERE, World

ADMITTED, PREEMPTED, ENDED = 1, 2, 3


@lean_kernel
def add(world: World, e: int, row: int) -> None:
    """A request has come; its rows of requests and jobs are filled, but for what the engine counts itself."""
    engine = world.engines[e]
    request = world.requests[row]
    if engine["num_waiting"] + engine["num_running"] == 0:
        engine["now_s"] = max(engine["now_s"], request["arrival_s"])
    request["phase"] = WAITING
    request["seq"] = engine["next_seq"]
    engine["next_seq"] += 1
    queue.push_back(world, e, row)
    pins.call_comes(world, e, row)
    on_arrival(engine["policy"], world.requests, row, world.tenants[e], engine["state"])


@lean_kernel
def cancel(world: World, e: int, row: int) -> None:
    """Between two steps: the client has left. The row is the caller's again."""
    engine = world.engines[e]
    if world.requests[row]["phase"] == RUNNING:
        engine["num_prefills"] -= int(prefilling(world.requests[row]))
        queue.drop_running(world, e, row)
        kv.release(world, e, row)
        pins.call_moves(world, e, row, 0, -1)
    else:
        queue.drop_waiting(world, e, row)
        pins.call_moves(world, e, row, -1, 0)
    world.jobs[row]["outcome"] = CANCELLED
    world.jobs[row]["ended_s"] = engine["now_s"]
    note(world, e, ENDED, row)
    on_finish(engine["policy"], world.requests, row, world.tenants[e])


@lean_kernel
def step(world: World, e: int, deciding: bool) -> None:
    """One step of an engine that has requests. Without `deciding` a policy that changes nothing is not asked."""
    engine = world.engines[e]
    if schedule(world, e, deciding or engine["neutral"] == 0) == 0:
        raise RuntimeError("simulator: a step scheduled nothing; a request needs more KV blocks than the engine has")
    model = engine["model"]
    seconds = step_seconds(
        model, engine["prefill_tokens"], engine["decode_seqs"], engine["kv_tokens"], engine["attention_pairs"]
    )
    seconds *= noise_ratio(world.step_ratios, engine["noise_seed"], engine["steps"])
    engine["busy_s"] += seconds
    engine["now_s"] += seconds
    if complete(world, e) > 0:
        finish(world, e)


@lean_kernel
def schedule(world: World, e: int, deciding: bool) -> int:
    """Decide one step at now_s; returns how many tokens it computes. jobs' `scheduled` says for whom."""
    engine = world.engines[e]
    pins.drop_expired(world, e)
    engine["prefill_tokens"] = 0.0
    engine["decode_seqs"] = 0.0
    engine["kv_tokens"] = 0.0
    engine["attention_pairs"] = 0.0
    if not deciding:
        return engine["max_num_batched_tokens"] - schedule_all(
            world, e, engine["max_num_batched_tokens"], engine["max_num_seqs"]
        )
    budget, parked, hash_ = plan(
        engine["policy"],
        world.requests,
        world.queues[e, engine["head"] :],
        engine["num_waiting"],
        world.queues[e],
        engine["num_running"],
        engine["max_num_seqs"] - engine["num_running"],
        engine["free_blocks"],
        engine["block_size"],
        engine["max_num_batched_tokens"],
        engine["now_s"],
        engine["model"],
        world.tenants[e],
        engine["state"],
    )
    engine["decisions"] += 1
    engine["step_plan_hash"] = hash_
    engine["plan_hash"] = fold(engine["plan_hash"], hash_)  # type: ignore[arg-type]
    if parked > 0:
        return budget - schedule_around(world, e, budget, parked)
    return budget - schedule_all(world, e, budget, engine["max_num_seqs"])


@kernel
def schedule_around(world: World, e: int, budget: int, parked: int) -> int:
    """Schedule as if the last `parked` running rows were not there; they keep blocks and seats and stand behind then."""
    engine = world.engines[e]
    engine["num_running"] -= parked
    engine["num_parked"] = parked
    aside = world.queues[e, engine["num_running"] : engine["num_running"] + parked].copy()
    left = schedule_all(world, e, budget, engine["max_num_seqs"] - parked)
    for place in range(parked):
        world.queues[e, engine["num_running"] + place] = aside[place]
    engine["num_running"] += parked
    engine["num_parked"] = 0
    return left


@lean_kernel
def schedule_all(world: World, e: int, budget: int, seats: int) -> int:
    """Running rows, then waiting ones; returns the tokens left."""
    left, preempted = schedule_running(world, e, budget)
    return left if preempted else schedule_waiting(world, e, left, seats)


@lean_kernel
def schedule_running(world: World, e: int, budget: int) -> tuple[int, bool]:
    """Give tokens to running requests in order; returns the tokens left and whether anybody was preempted."""
    engine = world.engines[e]
    running = world.queues[e]
    place = 0
    preempted = False
    while place < engine["num_running"] and budget > 0:
        row = running[place]
        request = world.requests[row]
        tokens = min(request["prompt_tokens"] + request["output_tokens"] - request["computed_tokens"], budget)
        while not kv.grow(world, e, row, request["computed_tokens"] + tokens):
            if engine["num_pins"] > 0:
                pins.break_pin(world, e, pins.soonest(world, e, -np.inf, NOWHERE))
                continue
            preempted = True
            engine["num_running"] -= 1
            preempt(world, e, running[engine["num_running"]])
            if engine["num_running"] == place:
                return budget, preempted
        assign(world, e, row, tokens)
        budget -= tokens
        place += 1
    return budget, preempted


@lean_kernel
def preempt(world: World, e: int, row: int) -> None:
    """Out of the running batch and to the front of the queue; all is to be computed again."""
    engine = world.engines[e]
    kv.release(world, e, row)
    on_preempt(world.requests, row, world.tenants[e])
    engine["preemptions"] += 1
    note(world, e, PREEMPTED, row)
    pins.call_moves(world, e, row, 1, -1)
    queue.push_front(world, e, row)


@lean_kernel
def schedule_waiting(world: World, e: int, budget: int, seats: int) -> int:
    """Admit waiting requests in order until one does not fit; returns the tokens left."""
    engine = world.engines[e]
    while budget > 0 and engine["num_waiting"] > 0 and engine["num_running"] < seats:
        row = world.queues[e, engine["head"]]
        request = world.requests[row]
        found = find_room(world, e, row)
        if found == NOWHERE:
            break
        cached = found * engine["block_size"]
        num_tokens = request["prompt_tokens"] + request["output_tokens"]
        tokens = min(num_tokens - cached, budget)
        kv.grow(world, e, row, cached + tokens)
        queue.pop_front(world, e)
        world.queues[e, engine["num_running"]] = row
        engine["num_running"] += 1
        request["phase"] = RUNNING
        request["computed_tokens"] = cached
        job = world.jobs[row]
        if job["scheduled_s"] == NEVER_S:
            job["scheduled_s"] = engine["now_s"]
            job["cached_tokens"] = cached
        engine["hit_tokens"] += cached
        engine["asked_tokens"] += num_tokens
        note(world, e, ADMITTED, row)
        pins.call_moves(world, e, row, -1, 1)
        on_admit(engine["policy"], world.requests, row, cached, world.tenants[e], engine["state"])
        assign(world, e, row, tokens)
        budget -= tokens
    return budget


@lean_kernel
def find_room(world: World, e: int, row: int) -> int:
    """Make a waiting request hold its cached prefix if all of it fits; returns the prefix's blocks, else NOWHERE."""
    engine = world.engines[e]
    program = world.requests[row]["program"]
    own = pins.pin_of(world, e, program)
    if own != NOWHERE:
        pins.lend(world, e, own)
    found, missing = prospect(world, e, row, own)
    if missing > 0 and engine["num_pins"] > 0:
        pins.make_room(world, e, row, missing)
        own = pins.pin_of(world, e, program)
        found, missing = prospect(world, e, row, own)
    if missing > 0:
        if own != NOWHERE:
            pins.take_back(world, e, own)
        return NOWHERE
    if engine["prefix_caching"] != 0:
        kv.take_prefix(world, e, row, found)
    else:
        engine["free_blocks"] -= found
        world.jobs[row]["blocks"] = found
    if own != NOWHERE:
        pins.forget(world, e, own)
    return found


@lean_kernel
def prospect(world: World, e: int, row: int, own: int) -> tuple[int, int]:
    """Blocks of cached prefix that a waiting request would find, and how many blocks are missing to hold all of it.

    own: its program's pin, lent. Where blocks are only counted, a call is taken to begin with the pinned text.
    """
    engine = world.engines[e]
    request = world.requests[row]
    num_tokens = request["prompt_tokens"] + request["output_tokens"]
    need = kv.blocks_for(num_tokens, engine["block_size"])
    if engine["prefix_caching"] != 0:
        found, idle = kv.find_prefix(world, e, row)
        return found, need - found + idle - engine["free_blocks"]
    found = 0
    if own != NOWHERE:
        found = min(world.pins[e, own]["tokens"], num_tokens - 1) // engine["block_size"]
    return found, need - engine["free_blocks"]


@lean_kernel
def assign(world: World, e: int, row: int, tokens: int) -> None:
    """The row computes so many tokens in this step; its blocks are there."""
    engine = world.engines[e]
    request = world.requests[row]
    computed = request["computed_tokens"]
    world.jobs[row]["scheduled"] = tokens
    if engine["prefix_caching"] != 0:
        kv.publish(world, e, row, computed + tokens)
    if prefilling(request):
        engine["prefill_tokens"] += tokens
        engine["attention_pairs"] += tokens * (computed + 0.5 * tokens)
    else:
        engine["decode_seqs"] += 1.0
        engine["kv_tokens"] += computed


@lean_kernel
def complete(world: World, e: int) -> int:
    """The step has run, it is now_s: whoever has everything computed gets a token. Returns how many have all theirs."""
    engine = world.engines[e]
    policy = engine["policy"]
    num_prefills = 0
    num_done = 0
    for place in range(engine["num_running"]):
        row = world.queues[e, place]
        request = world.requests[row]
        job = world.jobs[row]
        if job["scheduled"] > 0:
            request["computed_tokens"] += job["scheduled"]
            job["scheduled"] = 0
            if request["computed_tokens"] == request["prompt_tokens"] + request["output_tokens"]:
                request["output_tokens"] += 1
                num_done += int(request["output_tokens"] == job["target_tokens"])
                if request["first_token_s"] == NEVER_S:
                    request["first_token_s"] = engine["now_s"]
                if engine["charges"] != 0:
                    on_served(policy, world.requests, row, 1, world.tenants[e], engine["state"])
        num_prefills += int(prefilling(request))
    engine["num_prefills"] = num_prefills
    engine["steps"] += 1
    return num_done


@lean_kernel
def finish(world: World, e: int) -> None:
    """Whoever has all its tokens leaves, in list order; its blocks are freed, or kept for its program."""
    engine = world.engines[e]
    policy = engine["policy"]
    stay = 0
    for place in range(engine["num_running"]):
        row = world.queues[e, place]
        request = world.requests[row]
        job = world.jobs[row]
        if request["output_tokens"] < job["target_tokens"]:
            world.queues[e, stay] = row
            stay += 1
            continue
        pins.call_ends(world, e, row)
        job["outcome"] = FINISHED
        job["ended_s"] = engine["now_s"]
        note(world, e, ENDED, row)
        on_finish(policy, world.requests, row, world.tenants[e])
        world.queues[e, engine["max_num_seqs"] + engine["num_ended"]] = row
        engine["num_ended"] += 1
    engine["num_running"] = stay


@lean_kernel
def note(world: World, e: int, what: int, row: int) -> None:
    """Fold what happened to a request into the engine's outcome_hash."""
    engine = world.engines[e]
    request = world.requests[row]
    hash_ = fold(fold(engine["outcome_hash"], np.int64(what)), request["seq"])
    engine["outcome_hash"] = fold(hash_, request["output_tokens"])
