"""Output lengths as a tenant's own past tells them: a decaying histogram each, and a quantile of it as the prediction."""

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.requests import NUM_LENGTH_BUCKETS

# A new length weighs this much more than the one before it: the last few hundred decide.
_GROWTH = 1.005
# Below this much evidence there is no prediction.
_MIN_EVIDENCE = 8.0


@kernel
def length_bucket(tokens: float) -> int:
    """Two buckets an octave: 1, 1.5, 2, 3, 4, 6, ..."""
    bucket = 0
    bound = 1.0
    while bucket < NUM_LENGTH_BUCKETS - 1 and tokens > bound:
        bound = bound * 1.5 if bucket % 2 == 0 else bound / 1.5 * 2.0
        bucket += 1
    return bucket


@kernel
def bucket_bound(bucket: int) -> float:
    """The longest length of a bucket, in tokens."""
    octave = 1.0
    for _ in range(bucket // 2):
        octave *= 2.0
    return octave if bucket % 2 == 0 else octave * 1.5


@kernel
def observe_length(tenant: np.void, tokens: float) -> None:
    """The tenant's request ended after so many output tokens."""
    lengths = tenant["lengths"]
    for bucket in range(NUM_LENGTH_BUCKETS):
        lengths[bucket] /= _GROWTH
    lengths[length_bucket(tokens)] += 1.0


@kernel
def predict_length(tenant: np.void, quantile: float, max_tokens: float) -> float:
    """The quantile of the tenant's past lengths, at most max_tokens; max_tokens where too little is known."""
    lengths = tenant["lengths"]
    total = 0.0
    for bucket in range(NUM_LENGTH_BUCKETS):
        total += lengths[bucket]
    if total < _MIN_EVIDENCE:
        return max_tokens
    seen = 0.0
    for bucket in range(NUM_LENGTH_BUCKETS):
        seen += lengths[bucket]
        if seen >= quantile * total:
            return min(bucket_bound(bucket), max_tokens)
    return max_tokens
