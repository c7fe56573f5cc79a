"""Time passes on an engine, step by step or in jumps.

While only decodes run and nobody can be admitted, no decision is open: the same rows get one token each step. Such
steps are taken at once, up to the next event, the shortest remaining output, or where blocks might run out. The clock
adds up the same numbers in the same order as single steps do, so both give equal bits.
"""

from burrstone.batching.core.kernel import large, lean_kernel
from burrstone.batching.core.step_noise import noise_ratio
from burrstone.batching.core.step_time import step_seconds
from burrstone.batching.policies.plan import on_served
from burrstone.batching.sim import engine as engine_steps
from burrstone.batching.sim import kv, pins
from burrstone.batching.sim.world import World


@large
@lean_kernel
def advance(world: World, e: int, until_s: float, jumping: bool) -> None:
    """Run until the first step boundary at or after until_s, or nothing is left to do, or somebody has ended.

    Drain world.ended before the next call. A step that begins before until_s is finished.
    """
    engine = world.engines[e]
    while engine["now_s"] < until_s and engine["num_waiting"] + engine["num_running"] > 0 and engine["num_ended"] == 0:
        steps = safe_steps(world, e) if jumping else 0
        if steps > 1:
            jump(world, e, steps, until_s)
        else:
            engine_steps.step(world, e, not jumping)


@lean_kernel
def safe_steps(world: World, e: int) -> int:
    """How many steps can be taken at once: in none of them is anything to decide. 0 where each must be looked at."""
    engine = world.engines[e]
    running = engine["num_running"]
    if running == 0 or engine["num_prefills"] > 0:
        return 0
    if engine["num_waiting"] > 0 and running < engine["max_num_seqs"] and not blocked(world, e):
        return 0
    # A policy reorders decodes, its victims, where free blocks are not more than running requests.
    reserve = 0 if engine["neutral"] != 0 else running + 1
    steps = (engine["free_blocks"] - reserve) // running * engine["block_size"]
    for place in range(running):
        if steps <= 1:
            return 0
        row = world.queues[e, place]
        steps = min(steps, world.jobs[row]["target_tokens"] - world.requests[row]["output_tokens"])
    return steps


@lean_kernel
def blocked(world: World, e: int) -> bool:
    """Whether the head of the queue stays where it is until somebody ends: it lacks blocks that decodes only take."""
    engine = world.engines[e]
    if engine["neutral"] == 0 or engine["prefix_caching"] != 0:
        return False
    request = world.requests[world.queues[e, engine["head"]]]
    num_tokens = request["prompt_tokens"] + request["output_tokens"]
    return kv.blocks_for(num_tokens, engine["block_size"]) > engine["free_blocks"]


@lean_kernel
def jump(world: World, e: int, steps: int, until_s: float) -> None:
    """Take up to so many decode steps, fewer when until_s or a pin's expiry comes first."""
    engine = world.engines[e]
    model = engine["model"]
    running = engine["num_running"]
    pins.drop_expired(world, e)
    until_s = min(until_s, pins.next_expiry_s(world, e))
    kv_tokens = 0
    for place in range(running):
        kv_tokens += world.requests[world.queues[e, place]]["computed_tokens"]
    now_s = engine["now_s"]
    busy_s = engine["busy_s"]
    taken = 0
    while taken < steps and now_s < until_s:
        seconds = step_seconds(model, 0.0, float(running), float(kv_tokens), 0.0)
        seconds *= noise_ratio(world.step_ratios, engine["noise_seed"], engine["steps"] + taken)
        now_s += seconds
        busy_s += seconds
        kv_tokens += running
        taken += 1
    engine["now_s"] = now_s
    engine["busy_s"] = busy_s
    engine["steps"] += taken
    hold_blocks(world, e, taken)
    give_tokens(world, e, taken)
    engine_steps.finish(world, e)


@lean_kernel
def hold_blocks(world: World, e: int, steps: int) -> None:
    """Every running row takes the blocks of its next tokens, in the order in which single steps would take them."""
    engine = world.engines[e]
    if engine["prefix_caching"] == 0:
        for place in range(engine["num_running"]):
            row = world.queues[e, place]
            kv.grow(world, e, row, world.requests[row]["computed_tokens"] + steps)
        return
    block_size = engine["block_size"]
    for ahead in range(1, steps + 1):
        for place in range(engine["num_running"]):
            row = world.queues[e, place]
            tokens = world.requests[row]["computed_tokens"] + ahead
            if tokens % block_size <= 1:
                kv.grow(world, e, row, tokens)
                kv.publish(world, e, row, tokens)


@lean_kernel
def give_tokens(world: World, e: int, steps: int) -> None:
    """Every running row gets one token a step."""
    engine = world.engines[e]
    policy = engine["policy"]
    for place in range(engine["num_running"]):
        row = world.queues[e, place]
        world.requests[row]["computed_tokens"] += steps
        world.requests[row]["output_tokens"] += steps
        if engine["charges"] != 0:
            # One by one: a sum of floats is not a product.
            for _ in range(steps):
                on_served(policy, world.requests, row, 1, world.tenants[e], engine["state"])
