"""A histogram of times in buckets that grow by a constant factor, as HDR histograms and DDSketch have them (Masson et al. 2019).

Quantiles are within 1 % of the exact ones, however many values there are, and merging loses nothing: processes count on their
own, and together they have what one would have counted.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

RELATIVE_ERROR = 0.01
# Bucket n > 0 holds (LEAST_S * _GROWTH ** (n - 1), LEAST_S * _GROWTH ** n]; bucket 0 what is shorter, which counts as 0.
LEAST_S = 1e-6
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GROWTH = math.log(_GROWTH)


@dataclass(slots=True)
class Histogram:
    """buckets: bucket -> how many values it holds. The sum is exact."""

    buckets: dict[int, int] = field(default_factory=dict)
    count: int = 0
    sum_s: float = 0.0

    def add(self, value_s: float, count: int = 1) -> None:
        bucket = math.ceil(math.log(value_s / LEAST_S) / _LOG_GROWTH) if value_s > LEAST_S else 0
        self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += count
        self.sum_s += value_s * count

    def merge(self, other: Self) -> None:
        self._combine(other, 1)

    def since(self, earlier: Self) -> Self:
        """What came after `earlier`, which was a copy of this one."""
        made = type(self)(dict(self.buckets), self.count, self.sum_s)
        made._combine(earlier, -1)
        return made

    def quantile(self, share: float) -> float | None:
        """The value that this share of all does not exceed, in seconds; None where there is no value."""
        left = max(1, math.ceil(share * self.count))
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return LEAST_S * 2 * _GROWTH**bucket / (1 + _GROWTH) if bucket else 0.0
        return None

    @property
    def mean(self) -> float | None:
        return self.sum_s / self.count if self.count else None

    def as_json(self) -> dict[str, Any]:
        return {"buckets": sorted(self.buckets.items()), "sum_s": self.sum_s}

    @classmethod
    def of_json(cls, made: dict[str, Any]) -> Self:
        buckets = {int(bucket): int(count) for bucket, count in made["buckets"]}
        return cls(buckets, sum(buckets.values()), float(made["sum_s"]))

    def _combine(self, other: Self, sign: int) -> None:
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + sign * count
        self.count += sign * other.count
        self.sum_s += sign * other.sum_s
