"""KV caches that are kept for a program's next call: until they expire, the call comes, or somebody needs the room.

A decode that needs a block breaks any pin, the soonest to expire first, before anybody is preempted. A waiting request
breaks only pins of programs that began after its own, unless nothing runs at all: else the newest programs would take
the caches of the oldest, which come back soonest.
"""

import numpy as np

from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.sim import kv
from burrstone.batching.sim.world import NOWHERE, World


@lean_kernel
def pin(world: World, e: int, row: int, ttl_s: float) -> None:
    """Keep the blocks of a finished call; the row holds nothing afterwards."""
    engine = world.engines[e]
    request = world.requests[row]
    job = world.jobs[row]
    old = pin_of(world, e, request["program"])
    if old != NOWHERE:
        break_pin(world, e, old)
    elif engine["num_pins"] == world.pins.shape[1]:
        break_pin(world, e, soonest(world, e, -np.inf, NOWHERE))
    kept = world.pins[e, engine["num_pins"]]
    kept["program"] = request["program"]
    kept["program_arrival_s"] = request["program_arrival_s"]
    kept["expires_s"] = engine["now_s"] + ttl_s
    kept["tokens"] = request["computed_tokens"]
    kept["blocks"] = job["blocks"]
    kept["slot"] = job["slot"]
    engine["num_pins"] += 1
    job["blocks"] = 0
    job["full_blocks"] = 0
    job["slot"] = NOWHERE


@lean_kernel
def pin_of(world: World, e: int, program: int) -> int:
    """The program's pin, or NOWHERE."""
    if program < 0:
        return NOWHERE
    for index in range(world.engines[e]["num_pins"]):
        if world.pins[e, index]["program"] == program:
            return index
    return NOWHERE


@lean_kernel
def soonest(world: World, e: int, younger_than_s: float, spared: int) -> int:
    """The pin that expires first among programs that began after younger_than_s, but for one program, or NOWHERE."""
    best = NOWHERE
    for index in range(world.engines[e]["num_pins"]):
        kept = world.pins[e, index]
        allowed = kept["program_arrival_s"] > younger_than_s and kept["program"] != spared
        if allowed and (best == NOWHERE or kept["expires_s"] < world.pins[e, best]["expires_s"]):
            best = index
    return best


@lean_kernel
def next_expiry_s(world: World, e: int) -> float:
    """When the first pin expires; infinite without pins."""
    first = soonest(world, e, -np.inf, NOWHERE)
    return world.pins[e, first]["expires_s"] if first != NOWHERE else np.inf


@lean_kernel
def drop_expired(world: World, e: int) -> None:
    """Release what has been kept long enough, soonest first."""
    engine = world.engines[e]
    while engine["num_pins"] > 0:
        first = soonest(world, e, -np.inf, NOWHERE)
        if world.pins[e, first]["expires_s"] > engine["now_s"]:
            return
        break_pin(world, e, first)


@lean_kernel
def break_pin(world: World, e: int, index: int) -> None:
    """Release a pin's blocks and forget it. The order of the others stays."""
    engine = world.engines[e]
    if engine["prefix_caching"] != 0:
        kv.release_table(world, e, world.pins[e, index]["slot"], world.pins[e, index]["blocks"])
    else:
        engine["free_blocks"] += world.pins[e, index]["blocks"]
    engine["num_pins"] -= 1
    for place in range(index, engine["num_pins"]):
        world.pins[e, place] = world.pins[e, place + 1]


@lean_kernel
def gain(world: World, e: int, index: int, num_found: int) -> int:
    """Prefix caching: blocks that breaking this pin would free, without those that its program's call has found."""
    if index == NOWHERE:
        return 0
    kept = world.pins[e, index]
    slot = kept["slot"]
    mine = world.kv.free_slots[e, world.engines[e]["num_free_slots"] - 1]
    gained = 0
    for place in range(kept["blocks"]):
        block = world.kv.tables[e, slot, place]
        found = place < num_found and world.kv.tables[e, mine, place] == block
        if world.kv.blocks[e, block]["refs"] == 1 and not found:
            gained += 1
    return gained


@lean_kernel
def make_room(world: World, e: int, row: int, missing: int) -> None:
    """Break pins for a waiting request that lacks so many blocks, if that can be enough."""
    engine = world.engines[e]
    younger_than_s = world.requests[row]["program_arrival_s"] if engine["num_running"] > 0 else -np.inf
    own = world.requests[row]["program"]
    held = 0
    for index in range(engine["num_pins"]):
        kept = world.pins[e, index]
        if kept["program_arrival_s"] > younger_than_s and kept["program"] != own:
            held += kept["blocks"]
    if held < missing:
        return
    wanted = engine["free_blocks"] + missing
    while engine["free_blocks"] < wanted:
        index = soonest(world, e, younger_than_s, own)
        if index == NOWHERE:
            return
        break_pin(world, e, index)
