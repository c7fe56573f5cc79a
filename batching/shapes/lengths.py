"""How long prompts are: a histogram on a grid of lengths, from which bounds are chosen."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from burrstone.batching.errors import UsageError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class LengthHistogram:
    """Counts of lengths, each rounded up to a multiple of granule_tokens, and none above max_tokens.

    Neuron lays tensors out in 128 partitions, so a finer granule than 128 rarely buys anything there.
    """

    def __init__(self, max_tokens: int, granule_tokens: int = 128) -> None:
        if max_tokens < 1:
            raise UsageError(f"shapes: max_tokens must be >= 1, got {max_tokens}; give the model's maximum length")
        if granule_tokens < 1:
            raise UsageError(f"shapes: granule_tokens must be >= 1, got {granule_tokens}; 128 suits Neuron")
        self.max_tokens = max_tokens
        self.granule_tokens = granule_tokens
        self._counts: Floats = np.zeros(-(-max_tokens // granule_tokens), dtype=np.float64)

    def add(self, lengths: Ints) -> None:
        """Count these lengths. Raises UsageError for one that the model cannot take."""
        if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= self.max_tokens):
            wrong = lengths.min() if lengths.min() < 1 else lengths.max()
            raise UsageError(
                f"shapes: a length must be 1 to max_tokens ({self.max_tokens}), got {wrong}; refuse it at the edge"
            )
        np.add.at(self._counts, (lengths - 1) // self.granule_tokens, 1.0)

    def decay(self, factor: float) -> None:
        """Let what was counted so far weigh factor as much."""
        if not 0 <= factor <= 1:
            raise UsageError(f"shapes: the decay factor must be 0 to 1, got {factor}")
        self._counts *= factor

    @property
    def total(self) -> float:
        """How many lengths were counted, less what was forgotten."""
        return float(self._counts.sum())

    def steps(self) -> tuple[Ints, Floats]:
        """Distinct rounded lengths, ascending and always with max_tokens, and how many there are of each."""
        places = np.flatnonzero(self._counts)
        last = len(self._counts) - 1
        if len(places) == 0 or places[-1] != last:
            places = np.append(places, last)
        return np.minimum((places + 1) * self.granule_tokens, self.max_tokens), self._counts[places]

    def save(self) -> dict[str, Any]:
        """All state, as JSON takes it."""
        return {
            "max_tokens": self.max_tokens,
            "granule_tokens": self.granule_tokens,
            "counts": {str(place): float(self._counts[place]) for place in np.flatnonzero(self._counts)},
        }

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Self:
        """What save() gave, again."""
        histogram = cls(saved["max_tokens"], saved["granule_tokens"])
        for place, count in saved["counts"].items():
            histogram._counts[int(place)] = count
        return histogram
