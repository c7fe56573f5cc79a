"""A run over time, as the client saw it and as the server's metrics say."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from burrstone.batching.sim.report.plots import Axis, Series
from burrstone.bench.report.drawings import Drawing, per_second
from burrstone.bench.report.read import Run, floats

_NOTHING = np.empty(0)
_MOST_BINS = 200
_LEAST_BIN_S = 0.5


def timeline_drawings(runs: Sequence[Run]) -> list[Drawing]:
    """Load and state over time, a line a run: the first two as the client saw them, the others by the server's metrics."""
    requests, share = Axis("requests", low=0.0), Axis("share", low=0.0, percent=True)
    charts = [
        (
            "in-flight",
            "In flight",
            "answered requests, sent and not ended",
            [_in_flight(run) for run in runs],
            requests,
        ),
        ("output-tokens", "Output tokens per second", "as they came", *per_second([_tokens(run) for run in runs])),
    ]
    for name, title, text, axis in (
        ("running", "Running", "requests in the engine's batch", requests),
        ("waiting", "Waiting", "requests in the engine's queue", requests),
        ("generations", "In the server", "generations in the engine or its queue", requests),
        ("gate_waiting", "Waiting at the gate", "generations without a seat in the engine", requests),
        ("kv_share", "KV cache in use", "share of all blocks", share),
    ):
        lines = [_sampled(run, name) for run in runs]
        # What was nothing all the time is drawn at the bottom.
        idle = not any(np.nan_to_num(line.y).any() for line in lines)
        charts.append((name.replace("_", "-"), title, text, lines, replace(axis, high=1.0) if idle else axis))
    time = Axis("seconds", low=0.0)
    drawn = [Drawing(file, title, text, lines, time, axis) for file, title, text, lines, axis in charts]
    return [drawing for drawing in drawn if not drawing.empty]


def _in_flight(run: Run) -> Series:
    start_s, end_s = np.sort(run.start_s[run.answered]), np.sort(run.end_s[run.answered])
    if not len(start_s):
        return Series(run.name, _NOTHING, _NOTHING)
    at_s = np.linspace(0.0, end_s[-1], _MOST_BINS)
    count = np.searchsorted(start_s, at_s, side="right") - np.searchsorted(end_s, at_s, side="right")
    return Series(run.name, at_s, count.astype(np.float64), steps=True)


def _tokens(run: Run) -> Series:
    """In bins of a second or more; each piece of an answer counts as its share of the answer's tokens."""
    at_s, tokens = [_NOTHING], [_NOTHING]
    rows = zip(
        run.start_s, run.result["ttfts"], run.result["itls"], run.result["output_lens"], run.answered, strict=True
    )
    for start_s, ttft_s, gaps_s, size, answered in rows:
        if answered:
            pieces_s = start_s + ttft_s + np.cumsum([0.0, *gaps_s])
            at_s.append(pieces_s)
            tokens.append(np.full(len(pieces_s), size / len(pieces_s)))
    times_s, weights = np.concatenate(at_s), np.concatenate(tokens)
    if not len(times_s):
        return Series(run.name, _NOTHING, _NOTHING)
    last_s = float(times_s.max())
    width_s = float(np.ceil(max(1.0, last_s / _MOST_BINS)))
    counts, edges = np.histogram(times_s, np.arange(0.0, last_s + width_s, width_s), weights=weights)
    # The last bin is full only as far as the run goes.
    edges[-1] = max(last_s, edges[-2] + _LEAST_BIN_S)
    per_s = counts / np.diff(edges)
    return Series(run.name, floats(edges.tolist()), floats([*per_s, per_s[-1]]), steps=True)


def _sampled(run: Run, name: str) -> Series:
    timeline = run.result.get("timeline", {})
    if name not in timeline:
        return Series(run.name, _NOTHING, _NOTHING)
    return Series(run.name, floats(timeline["at_s"]), floats(timeline[name]), steps=True)
