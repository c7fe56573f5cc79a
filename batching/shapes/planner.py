"""The two ways of running on static shapes, by name: which graphs to compile, and which requests go into the next batch."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import FIRST_POW2, Shapes, dp_bounds, pow2_bounds
from burrstone.batching.shapes.forming import BatchFormer, Launch, LaunchRule, Wait, launch
from burrstone.batching.shapes.lengths import Ints, LengthHistogram


class BatchPlanner(Protocol):
    """Pure: no clock, no state of its own, equal arguments give equal decisions."""

    def bounds(self, histogram: LengthHistogram, num_bounds: int) -> tuple[int, ...]:
        """At most num_bounds bounds for these lengths, ascending; the last is the model's maximum."""

    def form(
        self, requests: np.ndarray, waiting: Ints, shapes: Shapes, now_s: float, gap_s: float, model: StepModel
    ) -> Launch | Wait:
        """Launch or wait. waiting: rows of requests ([capacity] of REQUEST) in queue order; gap_s: mean seconds between
        arrivals of late, infinite when unknown.
        """


@dataclass(frozen=True, slots=True)
class Pow2Planner:
    """The stock way: powers of two, and whoever waits goes at once, as many as the largest batch holds."""

    first_tokens: int = FIRST_POW2

    def bounds(self, histogram: LengthHistogram, num_bounds: int) -> tuple[int, ...]:
        """The largest num_bounds powers of two up to the maximum, whatever the lengths are."""
        if num_bounds < 1:
            raise UsageError(f"shapes: num_bounds must be >= 1, got {num_bounds}; one graph is the least there can be")
        return pow2_bounds(histogram.max_tokens, self.first_tokens)[-num_bounds:]

    def form(
        self, requests: np.ndarray, waiting: Ints, shapes: Shapes, now_s: float, gap_s: float, model: StepModel
    ) -> Launch | Wait:
        """The head of the queue; waits only when nobody does."""
        rows = waiting[: shapes.batch_sizes[-1]]
        return launch(requests, rows, shapes) if len(rows) else Wait.for_arrival()


@dataclass(frozen=True, slots=True)
class DpBucketsPlanner:
    """Bounds that pad the traffic least, and batches of requests that cost one another little."""

    rule: LaunchRule = field(default_factory=LaunchRule)

    def bounds(self, histogram: LengthHistogram, num_bounds: int) -> tuple[int, ...]:
        """The exact optimum for these lengths."""
        return dp_bounds(histogram, num_bounds)

    def form(
        self, requests: np.ndarray, waiting: Ints, shapes: Shapes, now_s: float, gap_s: float, model: StepModel
    ) -> Launch | Wait:
        """The head of the queue and those who suit it; waits by the launch rule."""
        return BatchFormer(shapes, model, self.rule).form(requests, waiting, now_s, gap_s)


def planner(name: str) -> BatchPlanner:
    """`pow2` or `dp-buckets`. Raises UsageError for any other name."""
    if name == "pow2":
        return Pow2Planner()
    if name == "dp-buckets":
        return DpBucketsPlanner()
    raise UsageError(f"shapes: the planner must be pow2 or dp-buckets, got {name!r}")
