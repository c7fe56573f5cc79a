"""Which engines to look at for a request."""

import numpy as np

from burrstone.batching.core.hashing import fold
from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.rng import mix, uniform_at
from burrstone.batching.routing.spec import LEAST_LOAD

NO_ENGINE = -1


@kernel
def live_from(views: np.ndarray, start: int) -> int:
    """The first live engine at or after start, round about; NO_ENGINE if none is."""
    for step in range(views.shape[0]):
        engine = (start + step) % views.shape[0]
        if views[engine]["alive"] != 0:
            return engine
    return NO_ENGINE


@kernel
def p2c_probes(seed: np.uint64, number: np.uint64, views: np.ndarray) -> tuple[int, int]:
    """Two live engines by chance for the decision of that number; twice the same if only one lives."""
    size = views.shape[0]
    one = live_from(views, int(uniform_at(seed, np.uint64(2) * number) * size))
    other = live_from(views, int(uniform_at(seed, np.uint64(2) * number + np.uint64(1)) * size))
    if other == one:
        other = live_from(views, (one + 1) % size)
    return one, other


@kernel
def session_engine(seed: np.uint64, session: int, views: np.ndarray) -> int:
    """The live engine with the highest hash of (session, engine): only a dead engine's sessions move."""
    best, highest = NO_ENGINE, np.uint64(0)
    for engine in range(views.shape[0]):
        if views[engine]["alive"] != 0:
            weight = fold(fold(seed, np.int64(session)), np.int64(engine))
            if best == NO_ENGINE or weight > highest:
                best, highest = engine, weight
    return best


@kernel
def candidate_engines(
    policy: np.void, views: np.ndarray, first: int, hashes: np.ndarray, number: np.uint64
) -> np.ndarray:
    """Engines to look at, those first that win among equals: all that live, from `first` on; in a large fleet those
    that the prompt's prefixes of 1, 2, 4, ... blocks hash to, where its earlier turns went, some by chance, and `first`."""
    size, probes = views.shape[0], policy["max_probes"]
    if size <= probes or policy["policy"] == LEAST_LOAD:
        every = np.empty(size, np.int64)
        count = 0
        for step in range(size):
            engine = (first + step) % size
            if views[engine]["alive"] != 0:
                every[count] = engine
                count += 1
        return every[:count]
    chosen = np.empty(probes, np.int64)
    depths = 0
    while (1 << depths) <= hashes.shape[0]:
        depths += 1
    for place in range(probes):
        draw = mix(policy["seed"] ^ mix(number * np.uint64(probes) + np.uint64(place)))
        if depths > 0 and place < probes - probes // 4:
            key = hashes[(1 << (depths - 1 - place % depths)) - 1]
            draw = mix(policy["seed"] ^ mix(key + np.uint64(place // depths)))
        chosen[place] = live_from(views, int(np.int64(draw % np.uint64(size))))
    chosen[probes - 1] = first
    return chosen
