"""What a router remembers, as arrays that kernels take; and the record of one of its decisions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.routing.dispatches import Dispatches, new_dispatches
from burrstone.batching.routing.gain import new_gain
from burrstone.batching.routing.prefix_index import PrefixIndex, new_prefix_index
from burrstone.batching.routing.watch import ARM, COUNTERS, NUM_ARMS

NO_SESSION = -1


# One choice, and why: what `choose` fills and `on_first_token` learns from.
DECISION = np.dtype(
    [
        ("engine", np.int64),
        ("agreeing", np.int64),  # bit 1 << arm for each arm of min-ttft that would have sent it there
        ("claimed_tokens", np.int64),  # of the prompt, held to be cached there
        ("waiting_s", np.float64),  # before its prefill
        ("whole_s", np.float64),  # its prefill if nothing is cached
        ("spared_s", np.float64),  # of that, if all that is claimed is cached
        ("predicted_s", np.float64),  # TTFT
        ("hash", np.uint64),
    ]
)


class RouterMemory(NamedTuple):
    """All that a router's decisions depend on besides its policy and what it is shown."""

    counters: np.ndarray  # [1] of COUNTERS
    arms: np.ndarray  # [3] of ARM
    gain: np.ndarray  # [1] of GAIN
    prefixes: PrefixIndex
    sent: Dispatches


def new_memory(num_engines: int, *, index_blocks: int = 1, first_turn: int = 0, ring: int = 64) -> RouterMemory:
    """The memory of a router that has decided nothing. index_blocks: blocks that an engine's prefix cache holds;
    first_turn: the engine at which its turns begin, so that routers side by side do not walk in step."""
    counters = np.zeros(1, dtype=COUNTERS)
    counters["turn"] = first_turn
    return RouterMemory(
        counters=counters,
        arms=np.zeros(NUM_ARMS, dtype=ARM),
        gain=new_gain(),
        prefixes=new_prefix_index(num_engines, index_blocks),
        sent=new_dispatches(num_engines, ring),
    )


def stacked(memories: list[RouterMemory]) -> RouterMemory:
    """Routers side by side: each array [routers, ...], for `memory_of` to take apart."""
    return RouterMemory(
        counters=np.stack([memory.counters for memory in memories]),
        arms=np.stack([memory.arms for memory in memories]),
        gain=np.stack([memory.gain for memory in memories]),
        prefixes=PrefixIndex(*map(np.stack, zip(*(memory.prefixes for memory in memories), strict=True))),
        sent=Dispatches(*map(np.stack, zip(*(memory.sent for memory in memories), strict=True))),
    )


@kernel
def memory_of(routers: RouterMemory, router: int) -> RouterMemory:
    """The memory of one of the stacked routers; it shares their arrays."""
    index, sent = routers.prefixes, routers.sent
    return RouterMemory(
        routers.counters[router],
        routers.arms[router],
        routers.gain[router],
        PrefixIndex(
            index.keys[router], index.newer[router], index.older[router], index.slots[router], index.ends[router]
        ),
        Dispatches(
            sent.time_s[router],
            sent.tokens[router],
            sent.pairs[router],
            sent.first[router],
            sent.after[router],
            sent.unseen_tokens[router],
            sent.unseen_pairs[router],
        ),
    )


def arrays_of(memory: RouterMemory) -> Iterator[tuple[str, np.ndarray]]:
    """Every array by its name; together they are all there is to save."""
    for group in (memory, memory.prefixes, memory.sent):
        for name, value in zip(group._fields, group, strict=True):
            if isinstance(value, np.ndarray):
                yield f"{type(group).__name__}.{name}", value
