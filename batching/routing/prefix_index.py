"""Which blocks of text each engine probably has in its prefix cache: one bounded LRU set of block hashes an engine.

An engine's entries sit in a doubly linked list, newest first, and are found through a hash table with linear probing.
The order is vLLM's: a request's blocks are freed tail first, so the start of a prompt outlives its end.
"""

from typing import NamedTuple

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.rng import mix

_ABSENT = -1
_NEWEST, _OLDEST, _COUNT = 0, 1, 2


class PrefixIndex(NamedTuple):
    """`capacity` blocks for each engine. Change it through the kernels below only."""

    keys: np.ndarray  # [engines, capacity] uint64
    newer: np.ndarray  # [engines, capacity] int32, the entry used next after this one
    older: np.ndarray  # [engines, capacity] int32
    slots: np.ndarray  # [engines, table] int32, the entry whose key hashes here
    ends: np.ndarray  # [engines, 3] int32: newest entry, oldest entry, number of entries


def new_prefix_index(num_engines: int, capacity: int) -> PrefixIndex:
    """Nothing is cached anywhere. capacity: blocks an engine, >= 1."""
    if capacity < 1:
        raise ValueError(f"a prefix index needs room for at least one block an engine, got {capacity}")
    table = 1 << (2 * capacity - 1).bit_length()
    shape = (num_engines, capacity)
    ends = np.full((num_engines, 3), _ABSENT, np.int32)
    ends[:, _COUNT] = 0
    return PrefixIndex(
        keys=np.zeros(shape, np.uint64),
        newer=np.full(shape, _ABSENT, np.int32),
        older=np.full(shape, _ABSENT, np.int32),
        slots=np.full((num_engines, table), _ABSENT, np.int32),
        ends=ends,
    )


@kernel
def cached_blocks(index: PrefixIndex, engine: int, hashes: np.ndarray) -> int:
    """How many of the prompt's first blocks, in a row, the engine has."""
    for place in range(hashes.shape[0]):
        if index.slots[engine, _slot(index, engine, hashes[place])] == _ABSENT:
            return place
    return hashes.shape[0]


@kernel
def use_blocks(index: PrefixIndex, engine: int, hashes: np.ndarray) -> None:
    """The engine computes or reuses these blocks of one prompt: they are its newest, the first block last."""
    for place in range(min(hashes.shape[0], index.keys.shape[1]) - 1, -1, -1):
        _use(index, engine, hashes[place])


@kernel
def forget_engine(index: PrefixIndex, engine: int) -> None:
    """The engine has lost its cache."""
    index.slots[engine, :] = _ABSENT
    index.ends[engine, _NEWEST] = _ABSENT
    index.ends[engine, _OLDEST] = _ABSENT
    index.ends[engine, _COUNT] = 0


@kernel
def _use(index: PrefixIndex, engine: int, key: np.uint64) -> None:
    slot = _slot(index, engine, key)
    entry = index.slots[engine, slot]
    if entry != _ABSENT:
        if index.ends[engine, _NEWEST] == entry:
            return
        _unlink(index, engine, entry)
    elif index.ends[engine, _COUNT] < index.keys.shape[1]:
        entry = index.ends[engine, _COUNT]
        index.ends[engine, _COUNT] += 1
    else:
        entry = index.ends[engine, _OLDEST]
        _unlink(index, engine, entry)
        _free_slot(index, engine, _slot(index, engine, index.keys[engine, entry]))
        slot = _slot(index, engine, key)
    index.keys[engine, entry] = key
    index.slots[engine, slot] = entry
    newest = index.ends[engine, _NEWEST]
    index.newer[engine, entry] = _ABSENT
    index.older[engine, entry] = newest
    if newest == _ABSENT:
        index.ends[engine, _OLDEST] = entry
    else:
        index.newer[engine, newest] = entry
    index.ends[engine, _NEWEST] = entry


@kernel
def _unlink(index: PrefixIndex, engine: int, entry: int) -> None:
    newer, older = index.newer[engine, entry], index.older[engine, entry]
    if newer == _ABSENT:
        index.ends[engine, _NEWEST] = older
    else:
        index.older[engine, newer] = older
    if older == _ABSENT:
        index.ends[engine, _OLDEST] = newer
    else:
        index.newer[engine, older] = newer


@kernel
def _home(index: PrefixIndex, key: np.uint64) -> int:
    return int(np.int64(mix(key) & np.uint64(index.slots.shape[1] - 1)))


@kernel
def _slot(index: PrefixIndex, engine: int, key: np.uint64) -> int:
    """Where the key is, or the free slot where it would be."""
    mask = index.slots.shape[1] - 1
    slot = _home(index, key)
    while index.slots[engine, slot] != _ABSENT and index.keys[engine, index.slots[engine, slot]] != key:
        slot = (slot + 1) & mask
    return slot


@kernel
def _free_slot(index: PrefixIndex, engine: int, slot: int) -> None:
    """Empty a slot and move later entries of its run up, so that every key is still found."""
    mask = index.slots.shape[1] - 1
    free = slot
    probe = (slot + 1) & mask
    while index.slots[engine, probe] != _ABSENT:
        home = _home(index, index.keys[engine, index.slots[engine, probe]])
        # The entry may move back only as far as its home.
        if ((probe - home) & mask) >= ((probe - free) & mask):
            index.slots[engine, free] = index.slots[engine, probe]
            free = probe
        probe = (probe + 1) & mask
    index.slots[engine, free] = _ABSENT
