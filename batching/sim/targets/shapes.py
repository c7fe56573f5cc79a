"""Target 9: bounds by dynamic programming against powers of two, fitted to the first half of a trace and judged on the
second, at an equal number of graphs; and what they and the launch rule are worth on an engine of static shapes.
"""

from dataclasses import replace

import numpy as np

from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.shapes.bounds import Shapes, bounds_of, pow2_bounds
from burrstone.batching.shapes.lengths import Ints, LengthHistogram
from burrstone.batching.shapes.planner import BatchPlanner, planner
from burrstone.batching.sim.static_engine import StaticRun, run_one_prompt, run_static_batch
from burrstone.batching.sim.targets.judge import Context, Row, Skipped, at_least, at_most, skipped
from burrstone.batching.sim.traffic.traces import read_trace
from burrstone.batching.sim.traffic.workload import at_speed
from burrstone.batching.sim.traffic.workload_types import Workload

# Trace -> its file and the model's maximum length, a power of two.
TRACES = {
    "conv": ("azure_llm_2023_conv.csv", 16_384),
    "code": ("azure_llm_2023_code.csv", 8_192),
    "mooncake": ("mooncake_conversation_trace.jsonl", 131_072),
}
# Served on one static-shape engine; Mooncake's prompts are too long for the step model of an 8B model on one device.
SERVED = ("conv", "code")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_SPEEDS = tuple(0.1 * 1.25**step for step in range(12))
_NUM_SERVED = 2000


def run(context: Context) -> dict[str, Row]:
    """Padding saved, misses, and goodput over that of powers of two."""
    rows: dict[str, Row] = {}
    for name, (file, max_tokens) in TRACES.items():
        context.progress(len(rows) / 10, f"bounds for {name}")
        try:
            trace = read_trace(context.trace(file))
        except Skipped as reason:
            rows[f"9-padding-saved-{name}"] = skipped(">= 0.08", str(reason))
            continue
        rows |= _padding(name, trace.input_tokens, max_tokens)
        if name in SERVED:
            context.progress(len(rows) / 10, f"serving {name} on static shapes")
            rows |= _goodput(name, trace, max_tokens)
    return rows


def compare_bounds(fitted: Ints, judged: Ints, max_tokens: int) -> tuple[float, int]:
    """Share of pow2's computed tokens that dp-buckets saves on `judged`, and lengths there without a bound."""
    stock, ours = _bounds(planner("pow2"), fitted, max_tokens), _bounds(planner("dp-buckets"), fitted, max_tokens)
    misses = int(np.sum(judged > ours[-1]))
    held = judged[judged <= min(ours[-1], stock[-1])]
    return 1 - float(bounds_of(ours, held).sum() / bounds_of(stock, held).sum()), misses


def _bounds(by: BatchPlanner, lengths: Ints, max_tokens: int) -> tuple[int, ...]:
    histogram = LengthHistogram(max_tokens)
    histogram.add(lengths)
    return by.bounds(histogram, len(pow2_bounds(max_tokens)))


def _padding(name: str, lengths: Ints, max_tokens: int) -> dict[str, Row]:
    half = len(lengths) // 2
    saved, misses = compare_bounds(lengths[:half], lengths[half:], max_tokens)
    return {f"9-padding-saved-{name}": at_least(saved, 0.08), f"9-misses-{name}": at_most(misses, 0)}


def _goodput(name: str, trace: Workload, max_tokens: int) -> dict[str, Row]:
    """Best goodput over arrival speeds; both ways of running the engine, each with SLOs that suit it."""
    half = len(trace) // 2
    served = np.flatnonzero(trace.input_tokens + trace.output_tokens <= max_tokens)
    served = served[served >= half][:_NUM_SERVED]
    workload = replace(trace.take(served), arrival_s=trace.arrival_s[served] - trace.arrival_s[served[0]])
    # No policy sees how long an answer will be: all are expected to be as long as the mean of the first half.
    mean = np.full(len(served), trace.output_tokens[:half].mean())
    shapes = {
        by: Shapes(_bounds(planner(by), trace.input_tokens[:half], max_tokens), BATCH_SIZES)
        for by in ("pow2", "dp-buckets")
    }

    def static_batch(by: str, load: Workload) -> StaticRun:
        return run_static_batch(load, shapes[by], DEFAULT_STEP_MODEL, planner(by))

    def one_prompt(by: str, load: Workload) -> StaticRun:
        return run_one_prompt(load, shapes[by], DEFAULT_STEP_MODEL)

    rows = {}
    for mode, serve, ttft_s, tpot_s in (
        ("static-batch", static_batch, 15.0, 0.1),
        ("one-prompt", one_prompt, 2.0, 0.1),
    ):
        best = dict.fromkeys(shapes, 0.0)
        for speed in _SPEEDS:
            load = replace(at_speed(workload, speed), predicted_tokens=mean, ttft_s=np.full(len(served), ttft_s))
            for by in shapes:
                good = serve(by, load).good(load, ttft_s, tpot_s)
                best[by] = max(best[by], good / float(load.arrival_s[-1]))
        rows[f"9-goodput-{mode}-{name}"] = at_least(best["dp-buckets"] / best["pow2"], 1.1)
    return rows
