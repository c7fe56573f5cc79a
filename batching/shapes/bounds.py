"""Which lengths to compile graphs for: powers of two, or the bounds that pad the traffic least.

A request runs in the smallest bound that holds it, and the rest of that bound is padding. The last bound is always the
model's maximum length, so there is no length without a graph.
"""

import itertools
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.lengths import Floats, Ints, LengthHistogram

FIRST_POW2 = 128


@dataclass(frozen=True, slots=True)
class Shapes:
    """The graphs that exist: every batch size with every bound. Both ascending; the last bound is the model's maximum."""

    bounds: tuple[int, ...]
    batch_sizes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("bounds", "batch_sizes"):
            values = getattr(self, name)
            if not values or values[0] < 1 or any(a >= b for a, b in itertools.pairwise(values)):
                raise UsageError(f"shapes: {name} must be rising numbers >= 1, got {values}")

    def bound_of(self, tokens: int) -> int:
        """The smallest bound that holds so many tokens. Raises UsageError above the last one."""
        return _at_least(self.bounds, tokens, "bounds")

    def batch_size_of(self, requests: int) -> int:
        """The smallest batch size that holds so many requests. Raises UsageError above the last one."""
        return _at_least(self.batch_sizes, requests, "batch_sizes")


def _at_least(values: tuple[int, ...], needed: int, name: str) -> int:
    place = bisect_left(values, needed)
    if place == len(values):
        raise UsageError(f"shapes: {name} end at {values[-1]}, which does not hold {needed}; refuse it at the edge")
    return values[place]


def pow2_bounds(max_tokens: int, first_tokens: int = FIRST_POW2) -> tuple[int, ...]:
    """first_tokens, doubled until max_tokens, which ends the list: NxDI's default buckets."""
    if max_tokens < 1 or first_tokens < 1:
        raise UsageError(f"shapes: max_tokens and first_tokens must be >= 1, got {max_tokens} and {first_tokens}")
    bounds = []
    bound = first_tokens
    while bound < max_tokens:
        bounds.append(bound)
        bound *= 2
    return (*bounds, max_tokens)


def dp_bounds(histogram: LengthHistogram, num_bounds: int) -> tuple[int, ...]:
    """The num_bounds bounds, all multiples of the granule but the maximum, that pad these lengths least: an exact optimum.

    D[k][j] = min over i of D[k-1][i] + u_j * (C_j - C_i), u the distinct rounded lengths and C their running count.
    O(num_bounds * n^2) for n distinct lengths. Fewer bounds come back where there are fewer distinct lengths.
    """
    if num_bounds < 1:
        raise UsageError(f"shapes: num_bounds must be >= 1, got {num_bounds}; one graph is the least there can be")
    lengths, counts = histogram.steps()
    chosen = _choose(lengths, np.concatenate([[0.0], np.cumsum(counts)]), min(num_bounds, len(lengths)))
    return tuple(int(lengths[place - 1]) for place in chosen)


def bounds_of(bounds: tuple[int, ...], lengths: Ints) -> Ints:
    """The bound that each length runs in. Raises UsageError if one has no bound that holds it."""
    ascending = np.array(bounds, dtype=np.int64)
    if len(lengths) and lengths.max() > ascending[-1]:
        raise UsageError(
            f"shapes: bounds end at {ascending[-1]}, which does not hold {lengths.max()}; refuse it at the edge"
        )
    return ascending[np.searchsorted(ascending, lengths)]


@kernel
def _choose(lengths: Ints, upto: Floats, num_bounds: int) -> Ints:
    """Places (from 1) of the bounds in lengths; upto[j] counts the first j lengths. The last is always the last length."""
    size = len(lengths)
    cost = np.full(size + 1, np.inf)
    cost[0] = 0.0
    came_from = np.zeros((num_bounds, size + 1), np.int64)
    for k in range(num_bounds):
        next_cost = np.full(size + 1, np.inf)
        for j in range(k + 1, size + 1):
            best = np.inf
            for i in range(k, j):
                total = cost[i] + lengths[j - 1] * (upto[j] - upto[i])
                if total < best:
                    best = total
                    came_from[k, j] = i
            next_cost[j] = best
        cost = next_cost
    chosen = np.empty(num_bounds, np.int64)
    place = size
    for k in range(num_bounds - 1, -1, -1):
        chosen[k] = place
        place = came_from[k, place]
    return chosen
