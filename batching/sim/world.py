"""The state of simulated engines: arrays of all engines of a fleet, which kernels take whole with an engine's number.

Rows of `requests` and `jobs` belong to the fleet, not to an engine: a row is taken when a request comes and given back
by whoever drains what has ended. So an engine costs its queue and its counters, and a long queue takes rows where
others leave them.
"""

from typing import NamedTuple

import numpy as np

from burrstone.batching.core.hashing import SEED
from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.core.requests import FREE, new_requests
from burrstone.batching.policies.spec import POLICY, STATE

# outcome
PENDING, FINISHED, CANCELLED = 0, 1, 2

# What the simulator knows of a request besides what policies may see.
JOB = np.dtype(
    [
        ("offer", np.int64),  # which request of the workload
        ("target_tokens", np.int64),  # output tokens that it will have
        ("final", np.int64),  # the engine is told at its end that its program calls no tool
        ("blocks", np.int64),  # KV blocks held
        ("slot", np.int64),  # prefix caching: row of the block tables, while it holds blocks
        ("full_blocks", np.int64),  # prefix caching: leading blocks that can be found by hash
        ("hash_start", np.int64),  # prefix caching: first of its hashes
        ("hashed_tokens", np.int64),  # prefix caching: leading tokens that hashes cover; what follows is its own
        ("scheduled", np.int64),  # tokens of the step in progress
        ("cached_tokens", np.int64),  # found in the cache when it was first admitted
        ("scheduled_s", np.float64),  # first admitted; NEVER_S before
        ("ended_s", np.float64),
        ("outcome", np.int64),
    ]
)

ENGINE = np.dtype(
    [
        # What it is.
        ("max_num_seqs", np.int64),
        ("max_num_batched_tokens", np.int64),
        ("block_size", np.int64),
        ("num_blocks", np.int64),
        ("prefix_caching", np.int64),
        ("neutral", np.int64),  # policy keeps the stock order
        ("charges", np.int64),  # policy counts served tokens
        ("pins", np.int64),  # policy keeps the KV cache of programs between calls
        ("hash_tokens", np.int64),  # tokens that one of the workload's block hashes covers
        ("model", np.float64, (5,)),  # StepModel.coefficients()
        ("noise_seed", np.uint64),
        ("policy", POLICY),
        ("state", STATE),  # the policy's
        # What it holds.
        ("now_s", np.float64),
        ("head", np.int64),  # where in its queues the first waiting row stands
        ("num_waiting", np.int64),
        ("num_running", np.int64),
        ("num_parked", np.int64),  # running rows that the step in progress hides
        ("num_prefills", np.int64),  # running rows that are prefilling
        ("num_ended", np.int64),
        ("free_blocks", np.int64),
        ("num_free_slots", np.int64),
        ("num_pins", np.int64),
        ("next_seq", np.int64),
        # The step in progress, in the terms of the step model.
        ("prefill_tokens", np.float64),
        ("decode_seqs", np.float64),
        ("kv_tokens", np.float64),
        ("attention_pairs", np.float64),
        ("step_plan_hash", np.uint64),
        # What it has done.
        ("busy_s", np.float64),
        ("steps", np.int64),  # of the engine, skipped ones included
        ("decisions", np.int64),  # calls of plan
        ("preemptions", np.int64),
        ("hit_tokens", np.int64),
        ("asked_tokens", np.int64),  # tokens of admitted requests, of which hit_tokens were in the cache
        ("plan_hash", np.uint64),  # of all calls of plan
        ("outcome_hash", np.uint64),  # of who was admitted, preempted and finished, in order; skipping steps keeps it
    ]
)

# A finished call's KV cache, kept for its program's next call.
PIN = np.dtype(
    [
        ("program", np.int64),
        ("program_arrival_s", np.float64),
        ("expires_s", np.float64),
        ("tokens", np.int64),
        ("blocks", np.int64),
        ("slot", np.int64),
    ]
)


# An agent program, as long as a policy keeps KV caches for its calls.
PROGRAM = np.dtype(
    [
        ("waiting", np.int64),  # its calls in the engine
        ("running", np.int64),
        ("last_end_s", np.float64),  # when a call finished last; NEVER_S before
    ]
)

# A KV block, for prefix caching. The free queue goes through before and after.
BLOCK = np.dtype(
    [
        ("hash", np.uint64),
        ("hashed", np.int64),  # whether it can be found by its hash
        ("refs", np.int64),  # how many requests hold it
        ("twin", np.int64),  # the next block of equal hash, in order of caching
        ("before", np.int64),
        ("after", np.int64),
    ]
)

# A place of the table that leads from a hash to the chain of its blocks; NOWHERE in an empty one.
PLACE = np.dtype([("hash", np.uint64), ("first", np.int64), ("last", np.int64)])


class Kv(NamedTuple):
    """Blocks one by one, for prefix caching; next to nothing where blocks are only counted."""

    blocks: np.ndarray  # [engines, blocks + 2] of BLOCK, the last two are the free queue's head and tail
    places: np.ndarray  # [engines, 2^n] of PLACE
    tables: np.ndarray  # [engines, slots, blocks of a sequence] int32
    free_slots: np.ndarray  # [engines, slots] int64, a stack


class World(NamedTuple):
    """All engines and all requests."""

    engines: np.ndarray  # [engines] of ENGINE
    requests: np.ndarray  # [rows] of REQUEST
    jobs: np.ndarray  # [rows] of JOB
    free_rows: np.ndarray  # [1 + rows] int64, how many, then a stack
    # [engines, ...] int64: max_num_seqs running rows, as many that ended and nobody has drained, then waiting ones
    # from head on.
    queues: np.ndarray
    pins: np.ndarray  # [engines, max_pins] of PIN
    programs: np.ndarray  # [programs] of PROGRAM, of all engines: each has its calls on one
    tenants: np.ndarray  # [engines, tenants] of TENANT
    step_ratios: np.ndarray  # [n] float64, elapsed over modelled seconds of recorded steps; NO_NOISE for none
    block_hashes: np.ndarray  # uint64, of the workload's requests, from jobs' hash_start on
    kv: Kv


NOWHERE = -1


def new_rows(num_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """requests, jobs and free_rows of a world. Rows that are never used cost no memory."""
    free_rows = np.arange(num_rows, -1, -1, dtype=np.int64)
    return new_requests(num_rows), np.zeros(num_rows, dtype=JOB), free_rows


def new_kv(engines: int, num_blocks: int, num_slots: int, blocks_per_sequence: int) -> Kv:
    """Blocks that are all free and empty, in order; num_blocks = 0 for engines that only count them."""
    blocks = np.zeros(num_blocks + 2, BLOCK)
    order = np.array([num_blocks, *range(num_blocks), num_blocks + 1])
    blocks["after"][order[:-1]] = order[1:]
    blocks["before"][order[1:]] = order[:-1]
    places = np.zeros(1 << max(2 * num_blocks - 1, 1).bit_length(), PLACE)
    places["first"] = NOWHERE
    slots = np.arange(num_slots - 1, -1, -1, dtype=np.int64)
    return Kv(
        blocks=np.tile(blocks, (engines, 1)),
        places=np.tile(places, (engines, 1)),
        tables=np.zeros((engines, num_slots, blocks_per_sequence), np.int32),
        free_slots=np.tile(slots, (engines, 1)),
    )


def new_engines(engines: int) -> np.ndarray:
    """Idle engines without limits yet: [engines] of ENGINE."""
    table = np.zeros(engines, dtype=ENGINE)
    table["plan_hash"] = SEED
    table["outcome_hash"] = SEED
    return table


@lean_kernel
def take_row(world: World) -> int:
    """A free row, or NOWHERE when all are taken."""
    left = world.free_rows[0]
    if left == 0:
        return NOWHERE
    world.free_rows[0] = left - 1
    return world.free_rows[left]


@lean_kernel
def give_row(world: World, row: int) -> None:
    """The request has ended and been read."""
    world.requests[row]["phase"] = FREE
    world.free_rows[0] += 1
    world.free_rows[world.free_rows[0]] = row
