"""A counter-based generator: the n-th number of a stream is a function of (seed, n). Its state is one integer."""

import numpy as np

from burrstone.batching.core.kernel import kernel

_MASK = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@kernel
def mix(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@kernel
def uniform_at(seed: np.uint64, n: np.uint64) -> float:
    """The n-th number of the stream, in [0, 1)."""
    return float(mix(seed + (n + np.uint64(1)) * _GAMMA) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


class Rng:
    """The stream of one seed. `position` is all its state."""

    def __init__(self, seed: int, position: int = 0) -> None:
        self.seed = seed & _MASK
        self.position = position

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        value = uniform_at(np.uint64(self.seed), np.uint64(self.position))
        self.position += 1
        return value

    def below(self, n: int) -> int:
        """The next integer in [0, n)."""
        if n < 1:
            raise ValueError(f"below(n) needs n >= 1, got {n}")
        return min(int(self.uniform() * n), n - 1)
