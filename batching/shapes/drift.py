"""When to compile new bounds: the traffic has changed so much that other bounds would pad it clearly less."""

from dataclasses import dataclass
from typing import Any, Self

from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import bounds_of, dp_bounds
from burrstone.batching.shapes.lengths import Ints, LengthHistogram


@dataclass(frozen=True, slots=True)
class DriftRule:
    """New bounds are worth a compilation when they would save this share of the computed tokens."""

    min_saving: float = 0.05
    min_requests: int = 1000  # of evidence; a histogram of fewer fits its own noise
    half_life_requests: float = 10_000.0
    check_every: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.min_saving < 1:
            raise UsageError(f"shapes: min_saving must be between 0 and 1, got {self.min_saving}; 0.05 is usual")
        if self.min_requests < 1 or self.check_every < 1 or not self.half_life_requests > 0:
            raise UsageError("shapes: min_requests, check_every and half_life_requests must be >= 1")


class BoundsWatch:
    """Counts lengths, forgetting the old ones, and says which bounds would serve the recent ones better."""

    def __init__(self, bounds: tuple[int, ...], rule: DriftRule, granule_tokens: int = 128) -> None:
        if not bounds:
            raise UsageError("shapes: bounds must not be empty; give those that are compiled now")
        self.bounds = bounds
        self.rule = rule
        self._recent = LengthHistogram(bounds[-1], granule_tokens)
        self._unchecked = 0

    def observe(self, lengths: Ints) -> tuple[int, ...] | None:
        """Count these lengths; the bounds to compile now if that is worth it, otherwise None."""
        self._recent.decay(0.5 ** (len(lengths) / self.rule.half_life_requests))
        self._recent.add(lengths)
        self._unchecked += len(lengths)
        if self._unchecked < self.rule.check_every or self._recent.total < self.rule.min_requests:
            return None
        self._unchecked = 0
        better = dp_bounds(self._recent, len(self.bounds))
        return better if self._saving(better) >= self.rule.min_saving else None

    def adopt(self, bounds: tuple[int, ...]) -> None:
        """These bounds are compiled and in use from now on."""
        if not bounds or bounds[-1] != self.bounds[-1]:
            raise UsageError(f"shapes: bounds must end at the model's maximum, {self.bounds[-1]}, got {bounds}")
        self.bounds = bounds

    def _saving(self, better: tuple[int, ...]) -> float:
        lengths, counts = self._recent.steps()
        return 1.0 - float(bounds_of(better, lengths) @ counts / (bounds_of(self.bounds, lengths) @ counts))

    def save(self) -> dict[str, Any]:
        """All state, as JSON takes it; the rule is configuration and not part of it."""
        return {"bounds": list(self.bounds), "recent": self._recent.save(), "unchecked": self._unchecked}

    @classmethod
    def load(cls, saved: dict[str, Any], rule: DriftRule) -> Self:
        """What save() gave, again, under the rule of today."""
        watch = cls(tuple(saved["bounds"]), rule, saved["recent"]["granule_tokens"])
        watch._recent = LengthHistogram.load(saved["recent"])
        watch._unchecked = saved["unchecked"]
        return watch
