"""An engine's waiting queue and running list. Waiting rows stand together in a wider array, so both ends move cheaply."""

from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.sim.world import World


@lean_kernel
def push_back(world: World, e: int, row: int) -> None:
    """To the end of the queue. Raises RuntimeError when it is full."""
    engine = world.engines[e]
    if engine["head"] + engine["num_waiting"] == world.queues.shape[1]:
        slide(world, e, 3 * engine["max_num_seqs"])
    world.queues[e, engine["head"] + engine["num_waiting"]] = row
    engine["num_waiting"] += 1


@lean_kernel
def push_front(world: World, e: int, row: int) -> None:
    """To the front of the queue."""
    engine = world.engines[e]
    if engine["head"] == 2 * engine["max_num_seqs"]:
        slide(world, e, 3 * engine["max_num_seqs"])
    engine["head"] -= 1
    world.queues[e, engine["head"]] = row
    engine["num_waiting"] += 1


@lean_kernel
def pop_front(world: World, e: int) -> None:
    """The first one leaves the queue."""
    engine = world.engines[e]
    engine["head"] += 1
    engine["num_waiting"] -= 1


@lean_kernel
def slide(world: World, e: int, head: int) -> None:
    """Move the queue so that it starts at `head`."""
    engine = world.engines[e]
    old, count = engine["head"], engine["num_waiting"]
    if head + count >= world.queues.shape[1]:
        raise RuntimeError("simulator: the waiting queue is full")
    if head < old:
        for place in range(count):
            world.queues[e, head + place] = world.queues[e, old + place]
    else:
        for place in range(count - 1, -1, -1):
            world.queues[e, head + place] = world.queues[e, old + place]
    engine["head"] = head


@lean_kernel
def drop_waiting(world: World, e: int, row: int) -> None:
    """Take a row out of the queue, wherever it stands. Raises RuntimeError when it does not."""
    engine = world.engines[e]
    place = engine["head"]
    end = place + engine["num_waiting"]
    while place < end and world.queues[e, place] != row:
        place += 1
    if place == end:
        raise RuntimeError("simulator: the request is not in the queue")
    for later in range(place + 1, end):
        world.queues[e, later - 1] = world.queues[e, later]
    engine["num_waiting"] -= 1


@lean_kernel
def drop_running(world: World, e: int, row: int) -> None:
    """Take a row out of the running list. Raises RuntimeError when it is not there."""
    engine = world.engines[e]
    place = 0
    end = engine["num_running"]
    while place < end and world.queues[e, place] != row:
        place += 1
    if place == end:
        raise RuntimeError("simulator: the request is not running")
    for later in range(place + 1, end):
        world.queues[e, later - 1] = world.queues[e, later]
    engine["num_running"] -= 1
