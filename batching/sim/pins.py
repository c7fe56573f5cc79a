"""KV caches that are kept for a program's next call: until they expire, the call comes, or somebody needs the room.

A running request that needs a block breaks any pin, the soonest to expire first, before anybody is preempted. A waiting
one breaks only pins of programs that began after its own, unless nothing runs at all: else the newest programs would
take the caches of the oldest, which come back soonest. A pin does not expire while its program's next call waits. An
answer that calls no tool ends its program for now: nothing is kept.
"""

import numpy as np

from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.core.requests import NEVER_S
from burrstone.batching.policies.ttl import keep_s, observe_call_end, observe_gap
from burrstone.batching.sim import kv
from burrstone.batching.sim.world import NOWHERE, World


@lean_kernel
def call_comes(world: World, e: int, row: int) -> None:
    """A call of a program waits; how long the program was away is learnt."""
    request = world.requests[row]
    if world.engines[e]["pins"] == 0 or request["program"] < 0:
        return
    program = world.programs[request["program"]]
    if program["waiting"] + program["running"] == 0 and program["last_end_s"] != NEVER_S:
        observe_gap(world.tenants[e, request["tenant"]], max(request["arrival_s"] - program["last_end_s"], 0.0))
    program["waiting"] += 1


@lean_kernel
def call_moves(world: World, e: int, row: int, waiting: int, running: int) -> None:
    """A program has so many more calls that wait and that run."""
    number = world.requests[row]["program"]
    if world.engines[e]["pins"] != 0 and number >= 0:
        world.programs[number]["waiting"] += waiting
        world.programs[number]["running"] += running


@lean_kernel
def call_ends(world: World, e: int, row: int) -> None:
    """A call has finished: its blocks are kept if its tenant's programs come back soon, else released."""
    engine = world.engines[e]
    request = world.requests[row]
    if engine["pins"] == 0 or request["program"] < 0:
        kv.release(world, e, row)
        return
    tenant = world.tenants[e, request["tenant"]]
    observe_call_end(tenant)
    world.programs[request["program"]]["last_end_s"] = engine["now_s"]
    call_moves(world, e, row, 0, -1)
    ttl_s = keep_s(tenant, engine["policy"]["ttl_s"])
    if ttl_s > 0.0 and world.jobs[row]["final"] == 0:
        pin(world, e, row, ttl_s)
    else:
        kv.release(world, e, row)


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
def due_s(world: World, e: int, index: int) -> float:
    """When the pin goes; never while its program's next call waits."""
    kept = world.pins[e, index]
    return np.inf if world.programs[kept["program"]]["waiting"] > 0 else kept["expires_s"]


@lean_kernel
def soonest(world: World, e: int, younger_than_s: float, spared: int) -> int:
    """The pin that expires first among programs that began after younger_than_s, but for one program, or NOWHERE."""
    best = NOWHERE
    for index in range(world.engines[e]["num_pins"]):
        kept = world.pins[e, index]
        allowed = kept["program_arrival_s"] > younger_than_s and kept["program"] != spared
        if allowed and (best == NOWHERE or due_s(world, e, index) < due_s(world, e, best)):
            best = index
    return best


@lean_kernel
def next_expiry_s(world: World, e: int) -> float:
    """When the first pin expires; infinite without pins."""
    first = soonest(world, e, -np.inf, NOWHERE)
    return due_s(world, e, first) if first != NOWHERE else np.inf


@lean_kernel
def drop_expired(world: World, e: int) -> None:
    """Release what has been kept long enough, soonest first."""
    engine = world.engines[e]
    while engine["num_pins"] > 0:
        first = soonest(world, e, -np.inf, NOWHERE)
        if due_s(world, e, first) > engine["now_s"]:
            return
        break_pin(world, e, first)


@lean_kernel
def break_pin(world: World, e: int, index: int) -> None:
    """Release a pin's blocks and forget it."""
    lend(world, e, index)
    forget(world, e, index)


@lean_kernel
def lend(world: World, e: int, index: int) -> None:
    """Release a pin's blocks; `forget` or `take_back` must follow before any block is allocated to others."""
    kept = world.pins[e, index]
    if world.engines[e]["prefix_caching"] != 0:
        kv.release_blocks(world, e, kept["slot"], kept["blocks"])
    else:
        world.engines[e]["free_blocks"] += kept["blocks"]


@lean_kernel
def take_back(world: World, e: int, index: int) -> None:
    """Hold again what was lent."""
    kept = world.pins[e, index]
    if world.engines[e]["prefix_caching"] == 0:
        world.engines[e]["free_blocks"] -= kept["blocks"]
        return
    for place in range(kept["blocks"]):
        kv.hold(world, e, world.kv.tables[e, kept["slot"], place])


@lean_kernel
def forget(world: World, e: int, index: int) -> None:
    """Strike a pin whose blocks are released off the list. The order of the others stays."""
    engine = world.engines[e]
    if engine["prefix_caching"] != 0:
        kv.free_slot(world, e, world.pins[e, index]["slot"])
    engine["num_pins"] -= 1
    for place in range(index, engine["num_pins"]):
        world.pins[e, place] = world.pins[e, place + 1]


@lean_kernel
def rest(world: World, e: int, program: int) -> None:
    """The program is said to be at rest: what is kept for it is released."""
    index = pin_of(world, e, program)
    if index != NOWHERE:
        break_pin(world, e, index)


@lean_kernel
def make_room(world: World, e: int, row: int, missing: int) -> None:
    """Break pins for a waiting request that lacks so many blocks, if that can be enough."""
    engine = world.engines[e]
    busy = engine["num_running"] + engine["num_parked"] > 0
    younger_than_s = world.requests[row]["program_arrival_s"] if busy else -np.inf
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
