"""Tiles that are worth trying for a product of few tokens."""

import itertools
import math

from burrstone.kernels.gate import TARGETS
from burrstone.kernels.select import MULTIPROCESSORS, Tile, bucket, predicted

_BLOCKS_N = (64, 128, 256)
_BLOCKS_K = (64, 128, 256, 512)
_SPLITS = (1, 2, 4, 8, 16)
_WARPS = (4, 8)
_STAGES = (2, 3, 4, 5)
# Sums that one thread holds.
_MOST_SUMS = 128
# A split of fewer steps has no time to get its pipeline going.
_LEAST_STEPS = 2
# Programs to a multiprocessor: with fewer, a part of the device has nothing to do; with more, splits only cost.
_LEAST_WAVES, _MOST_WAVES = 0.5, 6.0


def candidates(arch: str, m: int, n: int, k: int, a_bytes: int, count: int) -> list[Tile]:
    """At most `count`, the cost model's first, then those that fill the device best. a_bytes: of one activation."""
    multiprocessors = MULTIPROCESSORS.get(arch, 108)
    first = predicted(arch, m, n, k, multiprocessors)
    found = {first: -1.0}
    for block_n, block_k, splits, warps, stages in itertools.product(_BLOCKS_N, _BLOCKS_K, _SPLITS, _WARPS, _STAGES):
        tile = Tile(min(64, bucket(m)), block_n, block_k, splits, warps, stages)
        waves = tile.count(m, n) * splits / multiprocessors
        if fits(tile, arch, k, a_bytes) and (splits == 1 or _LEAST_WAVES <= waves <= _MOST_WAVES):
            # Two programs to a multiprocessor, with as much on its way as there is room for.
            room = shared_bytes(tile, a_bytes) / (_shared_limit(arch) / 2)
            found.setdefault(tile, abs(math.log2(waves / 2)) + abs(math.log2(room)))
    return sorted(found, key=found.__getitem__)[:count]


def fits(tile: Tile, arch: str, k: int, a_bytes: int) -> bool:
    """As far as can be known without compiling it."""
    sums = tile.block_m * tile.block_n / (32 * tile.num_warps)
    steps = k // tile.splits / tile.block_k
    enough = steps >= _LEAST_STEPS and tile.num_stages <= steps + 1
    return sums <= _MOST_SUMS and enough and shared_bytes(tile, a_bytes) <= _shared_limit(arch)


def shared_bytes(tile: Tile, a_bytes: int) -> int:
    """Of the tiles that are on their way: all stages of the weights, INT8, and of the activations."""
    return tile.num_stages * tile.block_k * (tile.block_n + tile.block_m * a_bytes)


def _shared_limit(arch: str) -> int:
    # What is not in the list is taken for the least of them.
    return TARGETS[arch].shared_bytes if arch in TARGETS else min(target.shared_bytes for target in TARGETS.values())
