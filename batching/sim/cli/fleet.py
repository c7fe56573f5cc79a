"""`burrstone sim fleet`: how many engines, with which policy, and what they cost."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.routing.spec import RouterSpec
from burrstone.batching.sim.cli.common import engine_facts, engine_specs, router_of, write_report
from burrstone.batching.sim.cli.neuron import Buckets, buckets, buckets_section, print_buckets
from burrstone.batching.sim.cli.output import ProgressBar, print_json, print_table
from burrstone.batching.sim.cli.serve import Changes, serve
from burrstone.batching.sim.cli.traffic import Traffic, print_workloads
from burrstone.batching.sim.fleet.fleet import Autoscale, Failure
from burrstone.batching.sim.fleet.recovery import recovery_s
from burrstone.batching.sim.fleet.sizing import Attained, cost_per_million_tokens, fewest, smallest
from burrstone.batching.sim.report.contenders import Trial, contender, trial
from burrstone.batching.sim.report.page import Origin, Section, page, table
from burrstone.batching.sim.report.plots import Axis, number, seconds
from burrstone.batching.sim.report.sections import Contender, Curve, curve_section, latency_section, timeline_section
from burrstone.batching.sim.spec import EngineSpec

DEFAULT_RATE = 40.0
# Of the duration: a queue that takes longer than this to empty may have been growing all the time.
_LONG_DRAIN = 0.1
Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """One policy behind one router: the fleet that was asked for, or the smallest that keeps the goal. `contender` is
    of that fleet, of the largest one that was tried where none keeps it."""

    name: str
    keeps: bool
    engines: int
    attained: Attained
    tried: tuple[Attained, ...]
    contender: Contender
    drain_s: float  # from the end of the traffic until nobody waits
    mean_engines: float  # fewer than `engines` with autoscaling
    recovery_s: float | None  # of the failure and seed where it took longest; infinite for never
    accelerators: int
    hourly: float | None
    per_million_tokens: float | None


def run(arguments: argparse.Namespace) -> int:
    """Search or simulate, rank, print, report; 1 if no fleet keeps the goal."""
    if arguments.workload == "list":
        print_workloads()
        return 0
    specs, traffic = engine_specs(arguments), Traffic(arguments, DEFAULT_RATE)
    routers = [router_of(name) for name in dict.fromkeys(arguments.router or ["round-robin"])]
    chosen = [(spec, router) for spec in specs for router in routers]
    plans = []
    with ProgressBar() as bar:
        bar.at(0.0, "starts; the first run compiles the simulator, once, which takes half a minute")
        for place, (spec, router) in enumerate(chosen):

            def progress(share: float, text: str, place: int = place) -> None:
                bar.at((place + share) / len(chosen), text)

            plans.append(_plan(arguments, spec, router, traffic, progress))
    plans.sort(key=lambda plan: (not plan.keeps, plan.mean_engines, -plan.attained.mean))
    shapes = (
        buckets(traffic.offered(arguments.rate, arguments.seeds[0]), arguments.graphs, arguments.max_model_len)
        if arguments.neuron
        else None
    )
    if arguments.report is not None:
        write_report(arguments.report, _report(arguments, specs[0], plans, shapes))
    if arguments.json:
        print_json({"command": arguments.command_line, "plans": [_as_json(plan) for plan in plans], "shapes": shapes})
    else:
        _print(arguments, plans, shapes)
    return 0 if plans[0].keeps else 1


def _plan(
    arguments: argparse.Namespace, spec: EngineSpec, router: RouterSpec, traffic: Traffic, progress: Progress
) -> Plan:
    runs: dict[int, list[Trial]] = {}
    changes = _changes(arguments)
    name = f"{spec.policy}, {router.name}"

    def served(engines: int, changes: Changes) -> list[Trial]:
        trials = []
        for seed in arguments.seeds:
            share, text = 1 - 0.8 ** len(runs), f"{name}: {engines:,} engines, seed {seed}"
            progress(share, text)
            workload = traffic.offered(arguments.rate, seed)

            def on_progress(_: int, share: float = share, text: str = text) -> None:
                progress(share, text)

            result = serve(arguments.mode, spec, router, engines, workload, on_progress, changes)
            trials.append(trial(seed, workload, result, arguments.duration_s))
        return trials

    def attained(engines: int) -> Attained:
        runs[engines] = served(engines, changes)
        return Attained.of(engines, [t.summary.attainment for t in runs[engines]])

    if arguments.engines is not None:
        best = attained(arguments.engines)
        tried = [best]
    else:
        start = fewest(spec, traffic.offered(arguments.rate, arguments.seeds[0]), arguments.duration_s)
        # A fleet of which nothing is left would do, were the traffic to wait; nobody asks for one.
        start = max(start, 1 + max((failure.first + failure.engines for failure in changes.failures), default=0))
        found, tried = smallest(attained, arguments.attainment, start, arguments.max_engines)
        best = found or tried[-1]
    kv_tokens = float(spec.num_blocks * spec.block_size * best.engines)
    figures = contender(name, runs[best.engines], arguments.duration_s, kv_tokens, traffic.tenant_names)
    accelerators = best.engines * arguments.accelerators_per_engine
    mean_engines = _mean_engines(best.engines, runs[best.engines])
    hourly = None if arguments.price is None else mean_engines * arguments.accelerators_per_engine * arguments.price
    recoveries = []
    if changes.failures:
        recoveries = _recoveries(changes, runs[best.engines], served(best.engines, replace(changes, failures=())))
    return Plan(
        name=name,
        keeps=best.low >= arguments.attainment,
        engines=best.engines,
        attained=best,
        tried=tuple(tried),
        contender=figures,
        drain_s=max(_drained_s(t) for t in runs[best.engines]) - arguments.duration_s,
        mean_engines=mean_engines,
        recovery_s=max(recoveries, default=None),
        accelerators=accelerators,
        hourly=hourly,
        per_million_tokens=None
        if hourly is None
        else cost_per_million_tokens(hourly, figures.pooled.output_tokens_per_s),
    )


def _changes(arguments: argparse.Namespace) -> Changes:
    """Of the flags; failures at the same time take different engines. Raises UsageError."""
    failures: list[Failure] = []
    for at_s, for_s, engines in sorted(arguments.fail or ()):
        if at_s >= arguments.duration_s:
            raise UsageError(f"--fail {at_s:g}: the traffic ends at {arguments.duration_s:g} s; see --duration-s")
        down = [failure for failure in failures if failure.at_s + failure.for_s > at_s]
        first = max((failure.first + failure.engines for failure in down), default=0)
        failures.append(Failure(at_s, for_s, engines, first))
    return Changes(tuple(failures), _autoscale(arguments))


def _autoscale(arguments: argparse.Namespace) -> Autoscale | None:
    if arguments.autoscale is None:
        for flag, value in (("--start-s", arguments.start_s), ("--least-engines", arguments.least_engines)):
            if value is not None:
                raise UsageError(f"{flag}: only with --autoscale, which says how many requests an engine should hold")
        return None
    scale = Autoscale(arguments.autoscale)
    if arguments.least_engines is not None:
        scale = replace(scale, least=arguments.least_engines)
    if arguments.start_s is not None:
        scale = replace(scale, start_s=arguments.start_s)
    if arguments.engines is None or scale.least > arguments.engines:
        raise UsageError(f"--autoscale: say with --engines how many there may be at most, {scale.least} or more")
    return scale


def _recoveries(changes: Changes, broken: Sequence[Trial], whole: Sequence[Trial]) -> list[float]:
    """Of every failure and seed."""
    starts_s = [failure.at_s for failure in changes.failures]
    return [
        recovery_s(one.result, other.result, at_s, min([s for s in starts_s if s > at_s], default=_ended_s(one)))
        for one, other in zip(broken, whole, strict=True)
        for at_s in starts_s
    ]


def _ended_s(t: Trial) -> float:
    """When the last request came."""
    return float(t.result.arrival_s.max())


def _mean_engines(engines: int, trials: Sequence[Trial]) -> float:
    """That were up while the traffic came."""
    means = [t.result.mean_engines for t in trials]
    return float(np.mean([engines if mean is None else mean for mean in means]))


def _drained_s(t: Trial) -> float:
    """When the last request started; programs' later calls come by themselves and are left out."""
    first_calls = t.workload.after < 0
    return float(t.result.scheduled_s[first_calls].max())


def _print(arguments: argparse.Namespace, plans: Sequence[Plan], shapes: list[Buckets] | None) -> None:
    print_table(_question(arguments, plans), _head(plans), _rows(plans))
    print(_answer(arguments, plans))
    if shapes is not None:
        print_buckets(shapes)
    if arguments.report is not None:
        print(f"report: {arguments.report}")


def _head(plans: Sequence[Plan]) -> list[str]:
    head = ["policy, router", "engines", "accelerators", "attainment", "TTFT p99", "TPOT p99"]
    head += ["engines on average"] if plans[0].mean_engines != plans[0].engines else []
    head += ["recovered after"] if plans[0].recovery_s is not None else []
    return head + (["cost an hour", "per million tokens"] if plans[0].hourly is not None else [])


def _rows(plans: Sequence[Plan]) -> list[list[str]]:
    rows = []
    for plan in plans:
        low, high = f"{100 * plan.attained.low:.1f}", f"{100 * plan.attained.high:.1f}"
        found = plan.contender.pooled
        row = [
            plan.name,
            f"{plan.engines:,}" if plan.keeps else f"> {plan.engines:,}",
            f"{plan.accelerators:,}",
            f"{low} %" if low == high else f"{low} - {high} %",
            seconds(found.ttft_s[2]),
            seconds(found.tpot_s[2]),
        ]
        if plans[0].mean_engines != plans[0].engines:
            row.append(f"{plan.mean_engines:,.1f}")
        if plan.recovery_s is not None:
            row.append(seconds(plan.recovery_s) if math.isfinite(plan.recovery_s) else "never")
        if plan.hourly is not None and plan.per_million_tokens is not None:
            row += [number(plan.hourly), number(plan.per_million_tokens)]
        rows.append(row)
    return rows


def _question(arguments: argparse.Namespace, plans: Sequence[Plan]) -> str:
    fleet = "the smallest fleet" if arguments.engines is None else f"{arguments.engines:,} engines"
    found = plans[0].contender.pooled
    rate = number(found.requests / (arguments.duration_s * len(arguments.seeds)))
    goal = f"{100 * arguments.attainment:g} % within SLOs"
    return f"{fleet[0].upper()}{fleet[1:]} for {arguments.workload} at {rate} requests/s, {goal}"


def _answer(arguments: argparse.Namespace, plans: Sequence[Plan]) -> str:
    best = plans[0]
    if not best.keeps:
        return (
            f"No fleet up to {best.engines:,} engines keeps {100 * arguments.attainment:g} %: a looser SLO, other engines or "
            "less traffic would; more engines do not help where one request alone is too slow."
        )
    worst = plans[-1]
    text = f"{best.name} keeps the goal with {best.engines:,} engines"
    if len(plans) > 1 and worst.engines > best.engines:
        text += f"; {worst.name} needs {'more than ' if not worst.keeps else ''}{worst.engines:,}"
    slow = [plan.name for plan in plans if plan.drain_s > _LONG_DRAIN * arguments.duration_s]
    if slow:
        text += (
            f". The queue of {' and '.join(slow)} outlasted the traffic: with a longer --duration-s it may take more"
        )
    return text + "."


def _as_json(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "keeps_goal": plan.keeps,
        "engines": plan.engines,
        "mean_engines": plan.mean_engines,
        "recovered": None if plan.recovery_s is None else math.isfinite(plan.recovery_s),
        "recovery_s": plan.recovery_s,
        "accelerators": plan.accelerators,
        "attainment": asdict(plan.attained),
        "tried": [asdict(attained) for attained in plan.tried],
        "hourly": plan.hourly,
        "per_million_output_tokens": plan.per_million_tokens,
        "all_seeds": asdict(plan.contender.pooled),
    }


def _report(
    arguments: argparse.Namespace, spec: EngineSpec, plans: Sequence[Plan], shapes: list[Buckets] | None
) -> str:
    sections = [Section("Ranking", "Fewest engines first.", table(_head(plans), _rows(plans), best=0))]
    if arguments.engines is None:
        sections.append(_curves(arguments, plans))
    contenders = [plan.contender for plan in plans]
    sections += [latency_section(contenders), timeline_section(contenders)]
    if shapes is not None:
        sections.append(buckets_section(shapes))
    origin = Origin(arguments.command_line, arguments.seeds, engine_facts(arguments, spec))
    return page(_question(arguments, plans), _answer(arguments, plans), sections, origin)


def _curves(arguments: argparse.Namespace, plans: Sequence[Plan]) -> Section:
    def scaled(scale: float) -> list[Curve]:
        return [
            Curve(
                plan.name,
                np.array([a.engines * scale for a in plan.tried]),
                *(np.array([getattr(a, column) for a in plan.tried]) for column in ("mean", "low", "high")),
            )
            for plan in plans
        ]

    charts = [(Axis("engines"), scaled(1.0))]
    if arguments.price is not None:
        charts.append((Axis("cost an hour"), scaled(arguments.accelerators_per_engine * arguments.price)))
    text = f"Every size that was tried; {100 * arguments.attainment:g} % is the goal, bands are over seeds."
    return curve_section("Fleet size and cost", text, charts, arguments.attainment)
