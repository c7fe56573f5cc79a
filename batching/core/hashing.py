"""64-bit hashes of decisions: what the engine logged and what the simulator decides are compared by these."""

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.rng import mix

SEED = np.uint64(0x6275727273746F6E)


@kernel
def fold(hash_: np.uint64, value: np.int64) -> np.uint64:
    """The hash of everything folded so far and this value; order matters."""
    return mix(hash_ ^ (np.uint64(value) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x2545F4914F6CDD1D)))


@kernel
def fold_float(hash_: np.uint64, value: float) -> np.uint64:
    """As `fold`, for a number of seconds or the like; equal to the last bit or different."""
    whole = np.floor(value)
    return fold(fold(hash_, np.int64(whole)), np.int64((value - whole) * 4503599627370496.0))


@kernel
def fold_requests(hash_: np.uint64, requests: np.ndarray, rows: np.ndarray, num_rows: int) -> np.uint64:
    """Fold the arrival numbers of requests[rows[:num_rows]], in that order."""
    hash_ = fold(hash_, np.int64(num_rows))
    for index in range(num_rows):
        hash_ = fold(hash_, requests[rows[index]]["seq"])
    return hash_
