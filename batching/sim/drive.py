"""One engine and a workload: who comes when, who leaves, who follows whom. The loop around `advance`."""

from typing import NamedTuple

import numpy as np

from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.core.requests import NEVER_S, WAITING
from burrstone.batching.sim.engine import add, cancel
from burrstone.batching.sim.macro import advance
from burrstone.batching.sim.world import CANCELLED, NOWHERE, PENDING, World, give_row, take_row

# A request of the workload, as it is offered to an engine.
OFFER = np.dtype(
    [
        ("arrival_s", np.float64),
        ("input_tokens", np.int64),
        ("output_tokens", np.int64),
        ("max_tokens", np.int64),
        ("predicted_tokens", np.float64),
        ("tenant", np.int64),
        ("weight", np.float64),
        ("program", np.int64),  # numbered from 0
        ("priority", np.int64),
        ("ttft_s", np.float64),
        ("tpot_s", np.float64),
        ("e2e_s", np.float64),
        ("cancel_s", np.float64),
        ("after", np.int64),
        ("think_s", np.float64),
        ("final", np.int64),
        ("next_sibling", np.int64),  # the next request that follows the same one
        ("hash_start", np.int64),
        ("hashed_tokens", np.int64),
    ]
)

# What became of it. Times are NEVER_S where it did not get so far.
OUTCOME = np.dtype(
    [
        ("arrival_s", np.float64),
        ("scheduled_s", np.float64),
        ("first_token_s", np.float64),
        ("ended_s", np.float64),
        ("output_tokens", np.int64),
        ("cached_tokens", np.int64),
        ("preemptions", np.int64),
        ("outcome", np.int64),
    ]
)

EVENT = np.dtype([("at_s", np.float64), ("serial", np.int64), ("offer", np.int64), ("leaves", np.int64)])

PROGRESS = np.dtype([("next_offer", np.int64), ("num_events", np.int64), ("serial", np.int64), ("ended", np.int64)])


class Run(NamedTuple):
    """A workload on its way through an engine."""

    offers: np.ndarray  # [requests] of OFFER
    outcomes: np.ndarray  # [requests] of OUTCOME
    rows: np.ndarray  # [requests] int64, the row of one that has come and not ended, or NOWHERE
    first_follower: np.ndarray  # [requests] int64
    program_arrival_s: np.ndarray  # [programs], NEVER_S before the first call
    events: np.ndarray  # [2 * requests] of EVENT, a heap: followers that come, clients that leave
    progress: np.ndarray  # [1] of PROGRESS


@lean_kernel
def drive(world: World, run: Run, jumping: bool, most: int) -> bool:
    """Go on until `most` more requests have ended; returns False when there is nothing left to do."""
    engine = world.engines[0]
    progress = run.progress[0]
    stop = progress["ended"] + most
    while progress["ended"] < stop:
        next_s = next_event_s(run)
        advance(world, 0, next_s, jumping)
        if engine["num_ended"] > 0:
            drain(world, run, 0)
        elif next_s < np.inf:
            next_event(world, run)
        else:
            return False
    return True


@lean_kernel
def next_event_s(run: Run) -> float:
    """When somebody comes or leaves next; infinite when nobody does."""
    progress = run.progress[0]
    while progress["next_offer"] < len(run.offers) and run.offers[progress["next_offer"]]["after"] >= 0:
        progress["next_offer"] += 1
    at_s = np.inf
    if progress["next_offer"] < len(run.offers):
        at_s = run.offers[progress["next_offer"]]["arrival_s"]
    if progress["num_events"] > 0:
        at_s = min(at_s, run.events[0]["at_s"])
    return at_s


@lean_kernel
def next_event(world: World, run: Run) -> None:
    """Let the next one come or leave; at equal times, those of fixed arrival first."""
    progress = run.progress[0]
    offer = progress["next_offer"]
    if offer < len(run.offers) and (
        progress["num_events"] == 0 or run.offers[offer]["arrival_s"] <= run.events[0]["at_s"]
    ):
        progress["next_offer"] += 1
        come(world, run, offer, run.offers[offer]["arrival_s"])
        return
    at_s = run.events[0]["at_s"]
    offer = run.events[0]["offer"]
    leaves = run.events[0]["leaves"]
    pop_event(run)
    if leaves == 0:
        come(world, run, offer, at_s)
    elif run.rows[offer] != NOWHERE:
        row = run.rows[offer]
        world.engines[0]["now_s"] = max(world.engines[0]["now_s"], at_s)
        cancel(world, 0, row)
        record(world, run, row)


@lean_kernel
def come(world: World, run: Run, offer: int, arrival_s: float) -> None:
    """The request arrives at the one engine."""
    row = take_row(world)
    if row == NOWHERE:
        raise RuntimeError("simulator: no row is left for a request")
    given = run.offers[offer]
    program_arrival_s = arrival_s
    if given["program"] >= 0:
        if run.program_arrival_s[given["program"]] == NEVER_S:
            run.program_arrival_s[given["program"]] = arrival_s
        program_arrival_s = run.program_arrival_s[given["program"]]
    fill(world, row, offer, given, arrival_s, program_arrival_s)
    run.rows[offer] = row
    add(world, 0, row)
    if given["cancel_s"] < np.inf:
        push_event(run, arrival_s + given["cancel_s"], offer, 1)


@lean_kernel
def fill(world: World, row: int, offer: int, given: np.void, arrival_s: float, program_arrival_s: float) -> None:
    """Write a request that has not come yet into its rows; seq is the engine's to give."""
    request = world.requests[row]
    request["phase"] = WAITING
    request["arrival_s"] = arrival_s
    request["prompt_tokens"] = given["input_tokens"]
    request["max_tokens"] = given["max_tokens"]
    request["predicted_tokens"] = given["predicted_tokens"]
    request["computed_tokens"] = 0
    request["output_tokens"] = 0
    request["tenant"] = given["tenant"]
    request["weight"] = given["weight"]
    request["program"] = given["program"]
    request["program_arrival_s"] = program_arrival_s
    request["priority"] = given["priority"]
    request["ttft_deadline_s"] = arrival_s + given["ttft_s"]
    request["tpot_s"] = given["tpot_s"]
    request["deadline_s"] = arrival_s + given["e2e_s"]
    request["first_token_s"] = NEVER_S
    request["preemptions"] = 0
    job = world.jobs[row]
    job["offer"] = offer
    job["target_tokens"] = given["output_tokens"]
    job["final"] = given["final"]
    job["blocks"] = 0
    job["slot"] = NOWHERE
    job["full_blocks"] = 0
    job["hash_start"] = given["hash_start"]
    job["hashed_tokens"] = given["hashed_tokens"]
    job["scheduled"] = 0
    job["cached_tokens"] = 0
    job["scheduled_s"] = NEVER_S
    job["ended_s"] = NEVER_S
    job["outcome"] = PENDING


@lean_kernel
def drain(world: World, run: Run, e: int) -> None:
    """Write down who has ended on an engine, and let those who follow think."""
    engine = world.engines[e]
    for place in range(engine["num_ended"]):
        row = world.queues[e, engine["max_num_seqs"] + place]
        offer = world.jobs[row]["offer"]
        ended_s = world.jobs[row]["ended_s"]
        record(world, run, row)
        follower = run.first_follower[offer]
        while follower != NOWHERE:
            push_event(run, ended_s + run.offers[follower]["think_s"], follower, 0)
            follower = run.offers[follower]["next_sibling"]
    engine["num_ended"] = 0


@lean_kernel
def record(world: World, run: Run, row: int) -> None:
    """The request has ended: keep what became of it and give its row back."""
    offer = world.jobs[row]["offer"]
    write_outcome(run.outcomes[offer], world.requests[row], world.jobs[row])
    run.rows[offer] = NOWHERE
    run.progress[0]["ended"] += 1
    give_row(world, row)


@lean_kernel
def write_outcome(outcome: np.void, request: np.void, job: np.void) -> None:
    """Into a record of OUTCOME: what became of a request that has ended."""
    outcome["arrival_s"] = request["arrival_s"]
    outcome["scheduled_s"] = job["scheduled_s"]
    outcome["first_token_s"] = request["first_token_s"]
    outcome["ended_s"] = job["ended_s"]
    outcome["output_tokens"] = request["output_tokens"]
    outcome["cached_tokens"] = job["cached_tokens"]
    outcome["preemptions"] = request["preemptions"]
    outcome["outcome"] = job["outcome"]


@lean_kernel
def push_event(run: Run, at_s: float, offer: int, leaves: int) -> None:
    """Put an event into the heap; equal times keep their order."""
    progress = run.progress[0]
    place = progress["num_events"]
    progress["num_events"] += 1
    while place > 0:
        above = (place - 1) // 2
        if run.events[above]["at_s"] <= at_s:
            break
        run.events[place] = run.events[above]
        place = above
    run.events[place]["at_s"] = at_s
    run.events[place]["serial"] = progress["serial"]
    run.events[place]["offer"] = offer
    run.events[place]["leaves"] = leaves
    progress["serial"] += 1


@lean_kernel
def earlier(run: Run, one: int, other: int) -> bool:
    """Whether the event at one place comes before that at another."""
    a, b = run.events[one], run.events[other]
    return a["at_s"] < b["at_s"] or (a["at_s"] == b["at_s"] and a["serial"] < b["serial"])


@lean_kernel
def pop_event(run: Run) -> None:
    """Take the first event out of the heap."""
    progress = run.progress[0]
    progress["num_events"] -= 1
    count = progress["num_events"]
    place = 0
    # The last one sinks from the top; it stands behind the heap while it does.
    while 2 * place + 1 < count:
        below = 2 * place + 1
        if below + 1 < count and earlier(run, below + 1, below):
            below += 1
        if not earlier(run, below, count):
            break
        run.events[place] = run.events[below]
        place = below
    run.events[place] = run.events[count]


@lean_kernel
def abandon(run: Run) -> None:
    """Whoever follows a client that has left does not come either."""
    for offer in range(len(run.offers)):
        after = run.offers[offer]["after"]
        if after >= 0 and run.outcomes[after]["outcome"] == CANCELLED:
            run.outcomes[offer]["outcome"] = CANCELLED
