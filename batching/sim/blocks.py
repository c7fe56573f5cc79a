"""The two structures behind prefix caching, in arrays: the queue of free blocks and the table from hash to block.

Blocks of equal hash are not merged, as in vLLM: they form a chain in the order in which they were cached, and whoever
looks the hash up gets the first.
"""

import numpy as np

from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.core.rng import mix
from burrstone.batching.sim.world import NOWHERE, Kv


@lean_kernel
def head_of(kv: Kv) -> int:
    """The free queue's head; its tail is the next number."""
    return kv.blocks.shape[1] - 2


@lean_kernel
def unlink(kv: Kv, e: int, block: int) -> None:
    """Take a block out of the free queue."""
    before, after = kv.blocks[e, block]["before"], kv.blocks[e, block]["after"]
    kv.blocks[e, before]["after"] = after
    kv.blocks[e, after]["before"] = before


@lean_kernel
def link_after(kv: Kv, e: int, block: int, before: int) -> None:
    """Put a block into the free queue, right behind another (or behind the queue's head)."""
    after = kv.blocks[e, before]["after"]
    kv.blocks[e, before]["after"] = block
    kv.blocks[e, block]["before"] = before
    kv.blocks[e, block]["after"] = after
    kv.blocks[e, after]["before"] = block


@lean_kernel
def pop_free(kv: Kv, e: int) -> int:
    """Take the block that is to be reused next out of the queue, which must not be empty."""
    block = kv.blocks[e, head_of(kv)]["after"]
    unlink(kv, e, block)
    return block


@lean_kernel
def home_of(kv: Kv, key: np.uint64) -> int:
    """Where the key stands in the table unless others are in its way."""
    return np.int64(mix(key) & np.uint64(kv.places.shape[1] - 1))  # type: ignore[return-value]


@lean_kernel
def place_of(kv: Kv, e: int, key: np.uint64) -> int:
    """Where the key stands in the table, or the empty place where it would."""
    mask = kv.places.shape[1] - 1
    place = home_of(kv, key)
    while kv.places[e, place]["first"] != NOWHERE and kv.places[e, place]["hash"] != key:
        place = (place + 1) & mask
    return place


@lean_kernel
def look_up(kv: Kv, e: int, key: np.uint64) -> int:
    """The first block that was cached under this hash, or NOWHERE."""
    return kv.places[e, place_of(kv, e, key)]["first"]


@lean_kernel
def remember(kv: Kv, e: int, block: int, key: np.uint64) -> None:
    """From now on the block can be found by this hash."""
    place = kv.places[e, place_of(kv, e, key)]
    if place["first"] == NOWHERE:
        place["hash"] = key
        place["first"] = block
    else:
        kv.blocks[e, place["last"]]["twin"] = block
    place["last"] = block
    kv.blocks[e, block]["twin"] = NOWHERE
    kv.blocks[e, block]["hash"] = key
    kv.blocks[e, block]["hashed"] = 1


@lean_kernel
def forget(kv: Kv, e: int, block: int) -> None:
    """The block is reused: its hash, if it has one, leads to it no more."""
    if kv.blocks[e, block]["hashed"] == 0:
        return
    kv.blocks[e, block]["hashed"] = 0
    index = place_of(kv, e, kv.blocks[e, block]["hash"])
    place = kv.places[e, index]
    ahead = NOWHERE
    here = place["first"]
    while here != block:
        ahead = here
        here = kv.blocks[e, here]["twin"]
    behind = kv.blocks[e, block]["twin"]
    if ahead != NOWHERE:
        kv.blocks[e, ahead]["twin"] = behind
        if behind == NOWHERE:
            place["last"] = ahead
    elif behind != NOWHERE:
        place["first"] = behind
    else:
        close_gap(kv, e, index)


@lean_kernel
def close_gap(kv: Kv, e: int, place: int) -> None:
    """Empty a place, and move up what stands behind it only because the place was taken."""
    mask = kv.places.shape[1] - 1
    hole = place
    step = place
    while True:
        step = (step + 1) & mask
        if kv.places[e, step]["first"] == NOWHERE:
            kv.places[e, hole]["first"] = NOWHERE
            return
        home = home_of(kv, kv.places[e, step]["hash"])
        # It may move up unless its home lies behind the hole.
        if ((step - home) & mask) >= ((step - hole) & mask):
            kv.places[e, hole] = kv.places[e, step]
            hole = step
