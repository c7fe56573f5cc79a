"""What a report draws, as data: the page makes SVG of it, `png` pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from burrstone.batching.sim.report.plots import Axis, Series, cdf
from burrstone.bench.load.capacity import lower_bound
from burrstone.bench.load.compare import FIGURES
from burrstone.bench.report.read import Compare, Floats, Peers, Run, Slo, floats

FIGURE_WORDS = {
    "output_throughput": "output tokens/s",
    "request_throughput": "requests/s",
    "goodput_rps": "goodput, requests/s",
    "median_ttft_ms": "TTFT p50, ms",
    "p99_ttft_ms": "TTFT p99, ms",
    "median_tpot_ms": "TPOT p50, ms",
}
# Gaps of pieces that came in one read are no latencies of anybody's.
_LEAST_MS = 0.1
_MANY_PER_S = 1000.0
_SLOS = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One chart. `file`: what a picture of it is called."""

    file: str
    title: str
    text: str
    series: Sequence[Series]
    x_axis: Axis
    y_axis: Axis

    @property
    def empty(self) -> bool:
        return not any(len(series.x) for series in self.series)


def latency_drawings(runs: Sequence[Run]) -> list[Drawing]:
    """Distributions, a line a run. What no run has a sample of is left out."""
    drawn = []
    for file, title, text, column in (
        ("ttft", "Time to first token", "from the intended sending", [run.ttft_ms for run in runs]),
        ("itl", "Inter-token latency", "each gap between pieces of an answer", [run.itl_ms for run in runs]),
        ("tpot", "Time per output token", "after the first, by request", [run.tpot_ms for run in runs]),
        ("e2e", "End to end", "from the intended sending to the last piece", [run.e2e_ms for run in runs]),
    ):
        lines = [cdf(run.name, values) for run, values in zip(runs, column, strict=True)]
        least_ms = max(_LEAST_MS, min((float(line.x.min()) for line in lines if len(line.x)), default=0.0))
        share = Axis("share", low=0.0, high=1.0, percent=True)
        drawn.append(Drawing(f"{file}-cdf", title, text, lines, Axis("ms", log=True, low=least_ms), share))
    return [drawing for drawing in drawn if not drawing.empty]


@dataclass(frozen=True, slots=True)
class _Point:
    """What was good of what was offered at a rate."""

    rate: float
    good: int
    offered: int

    @property
    def share(self) -> float:
        return self.good / self.offered


def rate_drawings(slos: Sequence[Slo], runs: Sequence[Run]) -> list[Drawing]:
    """Goodput and attainment over the offered rate: a line a search, and one of runs that differ in their rate."""
    curves = {slo.name: [_of_search(tried) for tried in slo.tried] for slo in slos} | _rising(runs)
    if not curves:
        return []
    goodput, attainment = [], []
    for name, points in curves.items():
        rate = floats([point.rate for point in points])
        low = floats([lower_bound(point.good, point.offered) for point in points])
        high = floats([1 - lower_bound(point.offered - point.good, point.offered) for point in points])
        share = floats([point.share for point in points])
        # Not good / duration: that counts the wait for the last answers too, which a search does not tell.
        goodput.append(Series(name, rate, rate * share, dots=True))
        attainment.append(Series(name, rate, share, low, high, dots=True))
    diagonal = floats([0.0, max(float(line.x.max()) for line in goodput)])
    goodput.append(Series("if all were good", diagonal, diagonal))
    goal = float(slos[0].result["attainment"]) if slos else None
    capacity = float(slos[0].result["sustained_rps"]) or None if len(slos) == 1 else None
    x_axis = Axis("offered requests per second", low=0.0, goal=capacity)
    text = "offered rate x share within all of their SLOs" + (", the capacity is dashed" if capacity else "")
    shares = Axis("attainment", low=0.0, high=1.0, percent=True, goal=goal)
    return [
        Drawing("goodput", "Goodput over rate", text, goodput, x_axis, Axis("good requests per second", low=0.0)),
        Drawing("attainment", "Attainment over rate", "of all offered requests", attainment, x_axis, shares),
    ]


def _of_search(tried: dict[str, Any]) -> _Point:
    return _Point(float(tried["rate"]), int(tried["good"]), int(tried["offered"]))


def _of_run(rate: float, found: dict[str, Any]) -> _Point:
    return _Point(rate, round(found["slo_attainment"] * found["offered"]), int(found["offered"]))


def _rising(runs: Sequence[Run]) -> dict[str, list[_Point]]:
    """Runs of one workload with the same SLOs on one server at several rates, by what they have in common."""
    groups: dict[str, list[_Point]] = {}
    for run in runs:
        if (rate := run.rate) is not None:
            slos = [
                f"{name[:-2].upper()} {run.setting[name]:g} s" for name in _SLOS if run.setting.get(name) is not None
            ]
            name = " ".join([f"{run.setting['workload']} on {run.setting['url']}", *slos])
            groups.setdefault(name, []).append(_of_run(rate, run.result))
    groups = {name: sorted(points, key=lambda point: point.rate) for name, points in groups.items()}
    return {name: points for name, points in groups.items() if points[0].rate < points[-1].rate}


def compare_drawings(compare: Compare) -> list[Drawing]:
    """B over A round by round, over the noise; a chart a figure that has a ratio."""
    drawn = []
    for figure in FIGURES:
        row = compare.result.get(figure)
        if row is not None and row["ratio"] is not None:
            rounds = floats(range(1, len(row["rounds"]) + 1))
            ends = np.array([rounds[0] - 0.5, rounds[-1] + 0.5])
            lines = [
                Series("B / A by round", rounds, np.array(row["rounds"]), dots=True),
                _band("A / A noise", ends, 1.0, max(0.0, 1.0 - row["noise"]), 1.0 + row["noise"]),
                _band(f"median, {compare.interval}", ends, row["ratio"], row["low"], row["high"]),
            ]
            better = "more is better" if FIGURES[figure] else "less is better"
            x_axis = Axis("round", low=float(ends[0]), high=float(ends[1]))
            file = f"{compare.name}-{figure.replace('_', '-')}"
            drawn.append(Drawing(file, FIGURE_WORDS[figure], better, lines, x_axis, Axis("B / A")))
    return drawn


def _band(name: str, x: Floats, middle: float, low: float, high: float) -> Series:
    """A level line with the two that it lies between."""
    ones = np.ones(len(x))
    return Series(name, x, middle * ones, low * ones, high * ones)


def peers_drawings(peers: Peers) -> list[Drawing]:
    """Output tokens a second over the number of streams, a line a server."""
    lines = []
    for name, peer in peers.result["peers"].items():
        streams = floats([float(count) for count in peer["streams"]])
        tokens = floats([row["output_throughput"] for row in peer["streams"].values()])
        lines.append(Series(name, streams, tokens, dots=True))
    if not lines:
        return []
    lines, y_axis = per_second(lines)
    text = "of all streams together, by server"
    x_axis = Axis("streams", log=True)
    return [Drawing(f"{peers.name}-tokens", "Output tokens per second", text, lines, x_axis, y_axis)]


def per_second(lines: list[Series]) -> tuple[list[Series], Axis]:
    """Lines of tokens/s with their axis; in thousands where there are many: long numbers would run into the axis's name."""
    if max((float(line.y.max()) for line in lines if len(line.y)), default=0.0) < _MANY_PER_S:
        return lines, Axis("tokens/s", low=0.0)
    return [replace(line, y=line.y / 1000.0) for line in lines], Axis("thousand tokens/s", low=0.0)
