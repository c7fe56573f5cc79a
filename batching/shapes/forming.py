"""Which waiting requests go into the next static batch, and whether the engine should wait for more of them.

A static batch runs until its last request has finished, in one graph of [batch size, bound]: whoever joins may lengthen
it for all. So a request joins only where that costs less engine time than running it alone would; and an idle engine
waits for the next request only while that saves more engine time than the waiting costs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from burrstone.batching.core.hashing import SEED, fold, fold_float, fold_requests
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import Shapes
from burrstone.batching.shapes.lengths import Ints

# A wait is no shorter, however close two requests came: after two at once and then none, one would ask again without end.
_LEAST_WAIT_S = 1e-3


@dataclass(frozen=True, slots=True)
class LaunchRule:
    """How long an idle engine may wait for company, counted from the arrival of the oldest request that waits."""

    max_wait_s: float = 0.5
    lookahead: int = 64  # waiting requests that are considered for a batch

    def __post_init__(self) -> None:
        if not (np.isfinite(self.max_wait_s) and self.max_wait_s >= 0):
            raise UsageError(f"shapes: max_wait_s must be a number >= 0, got {self.max_wait_s}; 0 never waits")
        if self.lookahead < 1:
            raise UsageError(f"shapes: lookahead must be >= 1, got {self.lookahead}; 64 is usual")


class Launch(NamedTuple):
    """Run these rows together, now, in the graph of batch_size x bound_tokens."""

    rows: tuple[int, ...]
    batch_size: int
    bound_tokens: int
    hash: int


class Wait(NamedTuple):
    """Ask again at until_s, or when a request comes. Infinite when nothing waits."""

    until_s: float
    hash: int

    @classmethod
    def for_arrival(cls) -> "Wait":
        """Nobody waits."""
        return cls(np.inf, int(fold(SEED, np.int64(0))))


class _Batch(NamedTuple):
    rows: tuple[int, ...] = ()
    longest_prompt: int = 0
    longest_output: float = 0.0
    due_s: float = np.inf  # the first deadline among those that can still be kept

    def joined_by(self, row: int, request: np.void, keepable: bool) -> "_Batch":
        return _Batch(
            (*self.rows, row),
            max(self.longest_prompt, int(request["prompt_tokens"])),
            max(self.longest_output, _output_tokens(request)),
            min(self.due_s, float(request["ttft_deadline_s"])) if keepable else self.due_s,
        )


class BatchFormer:
    """Forms batches for these shapes. Pure: the time and the rate of arrivals are arguments."""

    def __init__(self, shapes: Shapes, model: StepModel, rule: LaunchRule) -> None:
        self.shapes = shapes
        self.model = model
        self.rule = rule

    def form(self, requests: np.ndarray, waiting: Ints, now_s: float, gap_s: float) -> Launch | Wait:
        """Launch or wait. waiting: rows of requests ([capacity] of REQUEST) in queue order, whose first is always in the
        batch; gap_s: mean seconds between arrivals of late, infinite when unknown.
        """
        if len(waiting) == 0:
            return Wait.for_arrival()
        batch = self._fill(requests, waiting[: self.rule.lookahead], now_s)
        until_s = self._wait_until(requests, waiting, batch, now_s, gap_s)
        if until_s > now_s:
            return Wait(until_s, int(fold_float(SEED, until_s)))
        return launch(requests, np.array(batch.rows, dtype=np.int64), self.shapes)

    def _fill(self, requests: np.ndarray, waiting: Ints, now_s: float) -> _Batch:
        batch = _Batch()
        for row in waiting:
            request = requests[row]
            alone = _Batch().joined_by(int(row), request, keepable=True)
            keepable = now_s + self._prefill_s(alone) <= alone.due_s
            joined = batch.joined_by(int(row), request, keepable)
            cheaper = self._all_s(joined) - self._all_s(batch) <= self._all_s(alone) if batch.rows else True
            if not batch.rows or (cheaper and now_s + self._prefill_s(joined) <= joined.due_s):
                batch = joined
            if len(batch.rows) == self.shapes.batch_sizes[-1]:
                break
        return batch

    def _wait_until(self, requests: np.ndarray, waiting: Ints, batch: _Batch, now_s: float, gap_s: float) -> float:
        if len(batch.rows) == self.shapes.batch_sizes[-1] or not np.isfinite(gap_s):
            return now_s
        # The next request is taken to be like the batch's first: it saves what running alone would cost it, for itself
        # and for everybody behind, and costs everybody who waits one gap.
        first = batch.rows[0]
        typical = _Batch().joined_by(first, requests[first], keepable=True)
        joined = batch.joined_by(first, requests[first], keepable=True)
        saved_s = self._all_s(typical) + self._all_s(batch) - self._all_s(joined)
        behind = len(waiting) - len(batch.rows) + 1
        if saved_s * behind <= gap_s * len(waiting):
            return now_s
        oldest_s = float(requests["arrival_s"][waiting].min())
        asked_s = now_s + max(gap_s, _LEAST_WAIT_S)
        return min(asked_s, oldest_s + self.rule.max_wait_s, batch.due_s - self._prefill_s(batch))

    def _prefill_s(self, batch: _Batch) -> float:
        size = self.shapes.batch_size_of(len(batch.rows))
        return prefill_seconds_padded(self.model, size, self.shapes.bound_of(batch.longest_prompt))

    def _all_s(self, batch: _Batch) -> float:
        size = self.shapes.batch_size_of(len(batch.rows))
        context = min(batch.longest_prompt + int(batch.longest_output), self.shapes.bounds[-1])
        decode_s = decode_seconds_padded(self.model, size, self.shapes.bound_of(context))
        return self._prefill_s(batch) + max(batch.longest_output - 1.0, 0.0) * decode_s


def launch(requests: np.ndarray, rows: Ints, shapes: Shapes) -> Launch:
    """Run these rows in the smallest graph that holds them."""
    bound = shapes.bound_of(int(requests["prompt_tokens"][rows].max()))
    hash_ = fold_requests(SEED, requests, rows, len(rows))
    return Launch(tuple(int(row) for row in rows), shapes.batch_size_of(len(rows)), bound, int(hash_))


def prefill_seconds_padded(model: StepModel, batch_size: int, bound: int) -> float:
    """Seconds of one prefill step of [batch_size, bound], every place of it computed."""
    tokens = batch_size * bound
    return model.base_s + model.prefill_token_s * tokens + model.attention_pair_s * tokens * bound / 2


def decode_seconds_padded(model: StepModel, batch_size: int, bound: int) -> float:
    """Seconds of one decode step of batch_size sequences whose KV cache is read up to bound."""
    return model.base_s + model.decode_seq_s * batch_size + model.kv_token_s * batch_size * bound


def _output_tokens(request: np.void) -> float:
    predicted = float(request["predicted_tokens"])
    return predicted if predicted >= 0 else float(request["max_tokens"])
