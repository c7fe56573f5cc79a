"""Latencies of any number of requests in little memory: counts in buckets that are 2 % wide."""

import numpy as np

from burrstone.batching.core.kernel import lean_kernel

LEAST_S = 1e-4
PER_OCTAVE = 32
NUM_BUCKETS = PER_OCTAVE * 30


@lean_kernel
def bucket_of(seconds: float) -> int:
    """The bucket; the first and the last one hold what is beyond them."""
    if seconds <= LEAST_S:
        return 0
    return min(int(PER_OCTAVE * np.log2(seconds / LEAST_S)), NUM_BUCKETS - 1)


def quantile(counts: np.ndarray, share: float) -> float:
    """The middle of the bucket that holds this quantile, in seconds; NaN of nothing."""
    total = int(counts.sum())
    if total == 0:
        return float("nan")
    bucket = int(np.searchsorted(np.cumsum(counts), max(np.ceil(share * total), 1)))
    return float(LEAST_S * 2.0 ** ((bucket + 0.5) / PER_OCTAVE))
