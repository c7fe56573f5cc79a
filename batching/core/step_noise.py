"""What a step takes longer or shorter than its model says: recorded ratios, played again in stretches.

On a machine with other tenants slow steps come together. So the ratios are kept in order and replayed in stretches that
begin at random places, which keeps both how large they are and how they follow one another.
"""

import numpy as np
from numpy.typing import NDArray

from burrstone.batching.core.kernel import lean_kernel
from burrstone.batching.core.rng import uniform_at

_STRETCH_STEPS = 64
MAX_RATIOS = 4096
NO_NOISE: NDArray[np.float64] = np.ones(1)


@lean_kernel
def noise_ratio(ratios: np.ndarray, seed: np.uint64, step: int) -> float:
    """Elapsed over modelled seconds of the step-th step. ratios: [n] float64 in recorded order; NO_NOISE gives 1."""
    size = len(ratios)
    if size == 1:
        return ratios[0]
    start = int(uniform_at(seed, np.uint64(step // _STRETCH_STEPS)) * size)
    return ratios[(start + step % _STRETCH_STEPS) % size]
