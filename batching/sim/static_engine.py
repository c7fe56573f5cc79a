"""An engine whose graphs have fixed shapes, as on Neuron: every step computes a whole [batch size, bound] rectangle.

Two ways of running one: `static-batch` admits a batch and runs it until its last request has finished; `one-prompt`
admits one prompt a step, during which nothing is decoded, and always decodes all slots (vllm-neuron's way).
"""

from dataclasses import dataclass

import numpy as np

from burrstone.batching.core.requests import NEVER_S, new_requests
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import Shapes
from burrstone.batching.shapes.forming import Wait, decode_seconds_padded, prefill_seconds_padded
from burrstone.batching.shapes.lengths import Floats, Ints
from burrstone.batching.shapes.planner import BatchPlanner
from burrstone.batching.sim.traffic.workload_types import Workload

_GAP_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class StaticRun:
    """When each request of a workload was served, and what was computed for it."""

    first_token_s: Floats
    last_token_s: Floats
    prompt_tokens_computed: int  # padding included
    launches: int
    longest_idle_wait_s: float  # that an idle engine let its oldest request wait

    def good(self, workload: Workload, ttft_s: float, tpot_s: float) -> int:
        """Requests whose first token came in time, and the later ones on average."""
        in_time = self.first_token_s - workload.arrival_s <= ttft_s
        later = np.maximum(workload.output_tokens - 1, 1)
        return int(np.sum(in_time & ((self.last_token_s - self.first_token_s) / later <= tpot_s)))


def run_static_batch(workload: Workload, shapes: Shapes, model: StepModel, planner: BatchPlanner) -> StaticRun:
    """Serve the workload batch after batch."""
    requests = _table(workload, shapes)
    first_s, last_s = np.full(len(workload), NEVER_S), np.full(len(workload), NEVER_S)
    waiting: list[int] = []
    arrived, now_s, gap_s = 0, 0.0, np.inf
    computed, launches, longest_wait_s = 0, 0, 0.0
    while arrived < len(workload) or waiting:
        while arrived < len(workload) and workload.arrival_s[arrived] <= now_s:
            gap_s = _next_gap(gap_s, workload.arrival_s, arrived)
            waiting.append(arrived)
            arrived += 1
        decision = planner.form(requests, np.array(waiting, dtype=np.int64), shapes, now_s, gap_s, model)
        if isinstance(decision, Wait):
            if waiting and not decision.until_s > now_s:
                raise UsageError(f"static engine: Wait must end after now ({now_s}), got {decision.until_s}")
            coming_s = workload.arrival_s[arrived] if arrived < len(workload) else np.inf
            if waiting:
                until_s = min(decision.until_s, coming_s)
                longest_wait_s = max(longest_wait_s, float(until_s - requests["arrival_s"][waiting].min()))
            now_s = float(min(decision.until_s, coming_s))
            continue
        rows = np.array(decision.rows, dtype=np.int64)
        waiting = [row for row in waiting if row not in decision.rows]
        launches += 1
        computed += decision.batch_size * decision.bound_tokens
        now_s += prefill_seconds_padded(model, decision.batch_size, decision.bound_tokens)
        first_s[rows] = now_s
        now_s = _decode_batch(workload, rows, decision.batch_size, shapes, model, now_s, last_s)
    return StaticRun(first_s, last_s, computed, launches, longest_wait_s)


def _decode_batch(
    workload: Workload, rows: Ints, batch_size: int, shapes: Shapes, model: StepModel, now_s: float, last_s: Floats
) -> float:
    """Decode until the last of rows has finished; writes last_s and returns the time then."""
    done, context = 1, int(workload.input_tokens[rows].max()) + 1
    for row in rows[np.argsort(workload.output_tokens[rows], kind="stable")]:
        target = int(workload.output_tokens[row])
        while done < target:
            bound = shapes.bound_of(min(context, shapes.bounds[-1]))
            room = bound - context + 1 if bound < shapes.bounds[-1] else target - done
            steps = min(target - done, room)
            now_s += steps * decode_seconds_padded(model, batch_size, bound)
            done += steps
            context += steps
        last_s[row] = now_s
    return now_s


def run_one_prompt(workload: Workload, shapes: Shapes, model: StepModel) -> StaticRun:
    """Serve the workload first come first served, one prompt a step, with the largest batch size as slots."""
    _table(workload, shapes)
    slots = shapes.batch_sizes[-1]
    first_s, last_s = np.full(len(workload), NEVER_S), np.full(len(workload), NEVER_S)
    left, context = np.zeros(len(workload), np.int64), np.zeros(len(workload), np.int64)
    running = np.empty(0, np.int64)
    nxt, now_s, computed = 0, 0.0, 0
    while nxt < len(workload) or len(running):
        free = len(running) < slots and nxt < len(workload)
        if free and (workload.arrival_s[nxt] <= now_s or len(running) == 0):
            bound = shapes.bound_of(int(workload.input_tokens[nxt]))
            computed += bound
            now_s = max(now_s, float(workload.arrival_s[nxt])) + prefill_seconds_padded(model, 1, bound)
            first_s[nxt] = last_s[nxt] = now_s
            left[nxt], context[nxt] = workload.output_tokens[nxt] - 1, workload.input_tokens[nxt] + 1
            if left[nxt]:
                running = np.append(running, nxt)
            nxt += 1
            continue
        longest = int(context[running].max())
        bound = shapes.bound_of(min(longest, shapes.bounds[-1]))
        step_s = decode_seconds_padded(model, slots, bound)
        steps = int(left[running].min())
        if bound < shapes.bounds[-1]:
            steps = min(steps, bound - longest + 1)
        if free:
            steps = min(steps, max(1, int(np.ceil((workload.arrival_s[nxt] - now_s) / step_s))))
        now_s += steps * step_s
        left[running] -= steps
        context[running] += steps
        last_s[running[left[running] == 0]] = now_s
        running = running[left[running] > 0]
    return StaticRun(first_s, last_s, computed, len(workload), 0.0)


def _table(workload: Workload, shapes: Shapes) -> np.ndarray:
    needed = workload.input_tokens + workload.output_tokens
    if len(workload) and needed.max() > shapes.bounds[-1]:
        raise UsageError(
            f"static engine: prompt and output must fit in the last bound, {shapes.bounds[-1]}; request "
            f"{int(needed.argmax())} needs {needed.max()}: leave it out or raise the model's maximum"
        )
    requests = new_requests(len(workload))
    requests["seq"] = np.arange(len(workload))
    requests["arrival_s"] = workload.arrival_s
    requests["prompt_tokens"] = workload.input_tokens
    requests["max_tokens"] = workload.max_tokens
    requests["predicted_tokens"] = workload.predicted_tokens
    requests["ttft_deadline_s"] = workload.arrival_s + workload.ttft_s
    return requests


def _next_gap(gap_s: float, arrival_s: Floats, row: int) -> float:
    if row == 0:
        return gap_s
    latest = float(arrival_s[row] - arrival_s[row - 1])
    return latest if not np.isfinite(gap_s) else (1 - _GAP_WEIGHT) * gap_s + _GAP_WEIGHT * latest
