"""How long a finished call's KV cache is kept for its program's next call, by the gaps that the tenant's programs showed.

Continuum (2025) weighs the chance of a return against the memory that is held. Here the gaps decide alone, for memory
that somebody needs is given back at once: long enough for three in four of the returns that the cap allows (the last
quarter takes as long as all before it), and nothing where programs seldom come back within it.
"""

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.requests import NUM_LENGTH_BUCKETS
from burrstone.batching.policies.lengths import bucket_bound, length_bucket

# Gaps are counted in the buckets of lengths, in sixteenths of a second: 0.06 s to three hours.
_UNITS_A_SECOND = 16.0
_GROWTH = 1.005
_COVERED = 0.75
_MIN_RETURNS = 4.0
# Of all calls, so many must be followed by another within the cap.
_MIN_RETURN_SHARE = 0.2


@kernel
def observe_call_end(tenant: np.void) -> None:
    """A call of one of the tenant's programs has finished (not: was cancelled)."""
    gaps = tenant["gaps"]
    for bucket in range(NUM_LENGTH_BUCKETS):
        gaps[bucket] /= _GROWTH
    tenant["program_calls"] = tenant["program_calls"] / _GROWTH + 1.0


@kernel
def observe_gap(tenant: np.void, gap_s: float) -> None:
    """A program's next call came this long after its last one had finished."""
    tenant["gaps"][length_bucket(gap_s * _UNITS_A_SECOND)] += 1.0


@kernel
def keep_s(tenant: np.void, cap_s: float) -> float:
    """Seconds to keep a call's KV cache from its end on, at most cap_s; 0 where no return is to be expected."""
    gaps = tenant["gaps"]
    last = length_bucket(cap_s * _UNITS_A_SECOND)
    returns = 0.0
    for bucket in range(last + 1):
        returns += gaps[bucket]
    if returns < _MIN_RETURNS or returns < _MIN_RETURN_SHARE * tenant["program_calls"]:
        return 0.0
    seen = 0.0
    for bucket in range(last + 1):
        seen += gaps[bucket]
        if seen >= _COVERED * returns:
            return min(bucket_bound(bucket) / _UNITS_A_SECOND, cap_s)
    return cap_s
