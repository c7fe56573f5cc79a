"""An engine's KV blocks by vLLM 0.32's rules (v1/core/block_pool.py, kv_cache_manager.py), for a single KV group.

Without prefix caching blocks are only counted. With it each has a number, a reference count and, once full, a hash;
free blocks stand in a queue whose front is evicted next: what no hash leads to goes to the front, the rest to the back,
each request's tail first.
"""

import numpy as np

from burrstone.batching.core.hashing import SEED, fold
from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.sim import blocks
from burrstone.batching.sim.world import NOWHERE, World


@lean_kernel
def blocks_for(num_tokens: int, block_size: int) -> int:
    """How many blocks hold so many tokens."""
    return (num_tokens + block_size - 1) // block_size


@lean_kernel
def block_hash(world: World, e: int, row: int, index: int) -> np.uint64:
    """What the request's index-th block is found by: the workload's hash, or one that is the request's own."""
    job = world.jobs[row]
    block_size = world.engines[e]["block_size"]
    if (index + 1) * block_size <= job["hashed_tokens"]:
        covered = world.engines[e]["hash_tokens"]
        start = index * block_size
        hash_ = world.block_hashes[job["hash_start"] + start // covered]
        if covered == block_size:
            return hash_
        return fold(hash_, np.int64(start % covered))
    return fold(fold(SEED, world.requests[row]["seq"]), np.int64(index))


@lean_kernel
def find_prefix(world: World, e: int, row: int) -> tuple[int, int]:
    """Blocks of the longest cached prefix, and how many of them stand in the free queue.

    At most num_tokens - 1 tokens are taken: the last one must be computed to have logits. Their numbers are left in
    the table of the next free slot, where `take_prefix` expects them.
    """
    engine = world.engines[e]
    if engine["prefix_caching"] == 0:
        return 0, 0
    request = world.requests[row]
    block_size = engine["block_size"]
    most = (request["prompt_tokens"] + request["output_tokens"] - 1) // block_size
    slot = world.kv.free_slots[e, engine["num_free_slots"] - 1]
    found = 0
    idle = 0
    while found < most:
        block = blocks.look_up(world.kv, e, block_hash(world, e, row, found))
        if block == NOWHERE:
            break
        world.kv.tables[e, slot, found] = block
        if world.kv.blocks[e, block]["refs"] == 0:
            idle += 1
        found += 1
    return found, idle


@lean_kernel
def take_prefix(world: World, e: int, row: int, num_blocks: int) -> None:
    """Start to hold blocks: the first num_blocks are those that find_prefix found."""
    engine = world.engines[e]
    job = world.jobs[row]
    if engine["prefix_caching"] == 0:
        return
    engine["num_free_slots"] -= 1
    slot = world.kv.free_slots[e, engine["num_free_slots"]]
    job["slot"] = slot
    for index in range(num_blocks):
        hold(world, e, world.kv.tables[e, slot, index])
    job["blocks"] = num_blocks
    job["full_blocks"] = num_blocks


@lean_kernel
def grow(world: World, e: int, row: int, num_tokens: int) -> bool:
    """Hold blocks for num_tokens tokens. False, and nothing changed, when too few are free."""
    engine = world.engines[e]
    job = world.jobs[row]
    if num_tokens <= job["blocks"] * engine["block_size"]:
        return True
    more = blocks_for(num_tokens, engine["block_size"]) - job["blocks"]
    if more > engine["free_blocks"]:
        return False
    engine["free_blocks"] -= more
    if engine["prefix_caching"] != 0:
        for index in range(job["blocks"], job["blocks"] + more):
            block = blocks.pop_free(world.kv, e)
            blocks.forget(world.kv, e, block)
            world.kv.blocks[e, block]["refs"] = 1
            world.kv.tables[e, job["slot"], index] = block
    job["blocks"] += more
    return True


@lean_kernel
def publish(world: World, e: int, row: int, num_tokens: int) -> None:
    """Blocks that are full with num_tokens tokens can be found from now on: vLLM does this when it schedules them."""
    engine = world.engines[e]
    job = world.jobs[row]
    full = num_tokens // engine["block_size"]
    for index in range(job["full_blocks"], full):
        block = world.kv.tables[e, job["slot"], index]
        blocks.remember(world.kv, e, block, block_hash(world, e, row, index))
    job["full_blocks"] = max(full, job["full_blocks"])


@lean_kernel
def release(world: World, e: int, row: int) -> None:
    """Hold nothing any more."""
    engine = world.engines[e]
    job = world.jobs[row]
    if engine["prefix_caching"] == 0:
        engine["free_blocks"] += job["blocks"]
    elif job["slot"] != NOWHERE:
        release_blocks(world, e, job["slot"], job["blocks"])
        free_slot(world, e, job["slot"])
        job["slot"] = NOWHERE
    job["blocks"] = 0
    job["full_blocks"] = 0


@lean_kernel
def hold(world: World, e: int, block: int) -> None:
    """One more holds this block; it leaves the free queue if it stands there."""
    if world.kv.blocks[e, block]["refs"] == 0:
        blocks.unlink(world.kv, e, block)
        world.engines[e]["free_blocks"] -= 1
    world.kv.blocks[e, block]["refs"] += 1


@lean_kernel
def release_blocks(world: World, e: int, slot: int, num_blocks: int) -> None:
    """One less holds each of the slot's blocks; those that nobody holds are queued, tail first."""
    engine = world.engines[e]
    kv = world.kv
    head = blocks.head_of(kv)
    front = head  # what is put at the front keeps its order: each goes behind the one before
    for index in range(num_blocks - 1, -1, -1):
        block = kv.tables[e, slot, index]
        kv.blocks[e, block]["refs"] -= 1
        if kv.blocks[e, block]["refs"] == 0:
            engine["free_blocks"] += 1
            if kv.blocks[e, block]["hashed"] != 0:
                blocks.link_after(kv, e, block, kv.blocks[e, head + 1]["before"])
            else:
                blocks.link_after(kv, e, block, front)
                front = block


@lean_kernel
def free_slot(world: World, e: int, slot: int) -> None:
    """Another request may have the slot's table."""
    engine = world.engines[e]
    world.kv.free_slots[e, engine["num_free_slots"]] = slot
    engine["num_free_slots"] += 1
