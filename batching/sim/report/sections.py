"""The parts of a simulation report: what was found, as tables and charts. `page` beside it puts them together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from burrstone.batching.sim.measures import Latencies, Summary
from burrstone.batching.sim.report.page import Bar, Section, figures, table
from burrstone.batching.sim.report.plots import Axis, Series, cdf, chart, legend, number, seconds
from burrstone.batching.sim.traffic.workload_types import Floats


@dataclass(frozen=True, slots=True)
class Timeline:
    """An engine's, or a fleet's, state over time; all arrays are as long as time_s."""

    time_s: Floats
    waiting: Floats
    running: Floats
    kv_share: Floats  # of the blocks, in use


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """`service`: tokens served before the last arrival."""

    name: str
    weight: float
    service: float
    summary: Summary


@dataclass(frozen=True, slots=True)
class Contender:
    """One policy's runs: figures over all its seeds, and one of its timelines."""

    name: str
    seeds: tuple[Summary, ...]
    pooled: Summary
    latencies: Latencies
    programs_s: tuple[float, float, float]  # mean, p50 and p99 of what agent programs took, NaN where there are none
    jain: float
    tenants: tuple[TenantFigures, ...]
    preemptions: float  # a thousand requests
    hit_rate: float  # of prompt tokens, found in the prefix cache
    timeline: Timeline | None = None

    @property
    def attainment(self) -> float:
        """Mean over seeds, each counting alike."""
        return float(np.mean([summary.attainment for summary in self.seeds]))


@dataclass(frozen=True, slots=True)
class Curve:
    """Attainment of one policy at several rates (or fleet sizes); low and high are the interval over seeds."""

    name: str
    x: Floats
    attainment: Floats
    low: Floats
    high: Floats


def summary_section(contenders: Sequence[Contender]) -> Section:
    """The figures of each policy in one table."""
    head = ["policy", "attainment", "good req/s", "tokens/s"]
    head += [f"{what} {q}, s" for what in ("TTFT", "TPOT", "E2E") for q in ("p50", "p99")]
    programs = not np.isnan(contenders[0].programs_s[0])
    head += ["program mean, s", "program p99, s"] if programs else []
    head += ["Jain", "preempted / 1000", "cache hits"]
    rows = [
        [
            c.name,
            f"{100 * c.attainment:.1f} %",
            number(c.pooled.goodput_per_s),
            number(c.pooled.output_tokens_per_s),
            *(seconds(q[i]) for q in (c.pooled.ttft_s, c.pooled.tpot_s, c.pooled.e2e_s) for i in (0, 2)),
            *(seconds(c.programs_s[i]) for i in (0, 2) if programs),
            f"{c.jain:.3f}",
            number(c.preemptions),
            f"{100 * c.hit_rate:.1f} %",
        ]
        for c in contenders
    ]
    best = int(np.argmax([c.attainment for c in contenders])) if len(contenders) > 1 else None
    text = "Attainment: requests that finished within all their SLOs, of all that were offered; - is never reached."
    return Section("Result", text, table(head, rows, best))


def latency_section(contenders: Sequence[Contender]) -> Section:
    """Distributions of the three latencies."""
    x_axis, y_axis = Axis("seconds", log=True), Axis("share of requests", low=0.0, high=1.0, percent=True)
    drawn = []
    for title, text, column in (
        ("Time to first token", "from arrival", "ttft_s"),
        ("Time per output token", "after the first, per request", "tpot_s"),
        ("End to end", "from arrival to the last token", "e2e_s"),
    ):
        lines = [cdf(c.name, getattr(c.latencies, column)) for c in contenders]
        drawn.append((title, text, chart(lines, x_axis, y_axis)))
    text = "Share of requests that took at most so long. A line that ends below 100 % lost the others."
    return Section("Latencies", text, legend([c.name for c in contenders]) + figures(drawn))


def curve_section(title: str, text: str, curves: Sequence[tuple[Axis, Sequence[Curve]]], goal: float) -> Section:
    """Attainment over what each x axis names, such as the rate or the number of engines; a chart each, of the same names."""
    drawn = []
    for x_axis, shown in curves:
        lines = [Series(c.name, c.x, c.attainment, c.low, c.high, dots=True) for c in shown]
        least = min(0.9, *(float(np.nanmin(c.low)) for c in shown))
        y_axis = Axis("attainment", low=least, high=1.0, percent=True, goal=goal)
        drawn.append((f"Attainment over {x_axis.label}", "", chart(lines, x_axis, y_axis)))
    return Section(title, text, legend([c.name for c in curves[0][1]]) + figures(drawn))


def timeline_section(contenders: Sequence[Contender]) -> Section:
    """Queue, running requests and KV use over time, a line a policy."""
    shown = [(c.name, c.timeline) for c in contenders if c.timeline is not None]
    drawn = []
    for title, text, column in (
        ("Waiting", "requests in the engines' queues", "waiting"),
        ("Running", "requests in the engines' batches", "running"),
        ("KV cache in use", "share of all blocks", "kv_share"),
    ):
        share = column == "kv_share"
        lines = [Series(name, t.time_s, getattr(t, column), steps=True) for name, t in shown]
        y_axis = Axis("share" if share else "requests", low=0.0, high=1.0 if share else None, percent=share)
        drawn.append((title, text, chart(lines, Axis("seconds"), y_axis)))
    return Section("Timeline", "The first seed.", legend([name for name, _ in shown]) + figures(drawn))


def fairness_section(contenders: Sequence[Contender]) -> Section:
    """Each tenant under each policy, and Jain's index."""
    head = ["tenant", "policy", "weight", "requests", "attainment", "TTFT p50, s", "TTFT p99, s", "tokens served"]
    rows: list[list[str | Bar]] = []
    most = max(t.service for c in contenders for t in c.tenants)
    for index in range(len(contenders[0].tenants)):
        for c in contenders:
            t = c.tenants[index]
            latency = [seconds(t.summary.ttft_s[0]), seconds(t.summary.ttft_s[2])]
            met = f"{100 * t.summary.attainment:.1f} %"
            service = Bar(number(t.service), t.service / max(most, 1.0))
            rows.append([t.name, c.name, number(t.weight), f"{t.summary.requests:,}", met, *latency, service])
    index_text = "; ".join(f"{c.name} {c.jain:.3f}" for c in contenders)
    text = (
        f"Jain's index: {index_text}. 1 means that every tenant got its max-min fair share of what was served before the "
        "last arrival: all it asked for, or as much, by weight, as anyone else."
    )
    return Section("Tenants", text, table(head, rows, words=2))
