"""`burrstone sim run`: policies side by side on one engine's traffic."""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from burrstone.batching.sim.cli.common import engine_facts, engine_specs, router_of, write_report
from burrstone.batching.sim.cli.output import ProgressBar, print_json, print_table
from burrstone.batching.sim.cli.serve import serve
from burrstone.batching.sim.cli.traffic import Traffic, print_workloads
from burrstone.batching.sim.measures import interval
from burrstone.batching.sim.report.contenders import Trial, contender, trial
from burrstone.batching.sim.report.page import Origin, Section, page
from burrstone.batching.sim.report.plots import Axis, number, seconds
from burrstone.batching.sim.report.sections import (
    Contender,
    Curve,
    curve_section,
    fairness_section,
    latency_section,
    summary_section,
    timeline_section,
)
from burrstone.batching.sim.spec import EngineSpec

MAX_TENANTS = 10


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy at one rate, with every seed."""

    policy: str
    rate: float
    trials: tuple[Trial, ...]
    contender: Contender


def run(arguments: argparse.Namespace) -> int:
    """Simulate, print, report."""
    if arguments.workload == "list":
        print_workloads()
        return 0
    specs, traffic = engine_specs(arguments), Traffic(arguments)
    rates = arguments.rate or [None]
    cells = []
    with ProgressBar() as bar:
        bar.at(0.0, "starts; the first run compiles the simulator, once, which takes half a minute")
        for place, (rate, spec) in enumerate((rate, spec) for rate in rates for spec in specs):

            def progress(share: float, text: str, place: int = place) -> None:
                bar.at((place + share) / (len(rates) * len(specs)), text)

            cells.append(_cell(arguments, spec, traffic, rate, progress))
    if arguments.report is not None:
        write_report(arguments.report, _report(arguments, specs[0], cells))
    if arguments.json:
        print_json({"command": arguments.command_line, "runs": [_as_json(cell) for cell in cells]})
    else:
        _print(cells, arguments.attainment)
        if arguments.report is not None:
            print(f"report: {arguments.report}")
    return 0


def _cell(
    arguments: argparse.Namespace,
    spec: EngineSpec,
    traffic: Traffic,
    rate: float | None,
    progress: Callable[[float, str], None],
) -> Cell:
    trials = []
    for place, seed in enumerate(arguments.seeds):
        workload = traffic.offered(rate, seed)
        size, text = max(len(workload), 1), f"{spec.policy}, seed {seed}"

        def on_progress(ended: int, place: int = place, size: int = size, text: str = text) -> None:
            progress((place + ended / size) / len(arguments.seeds), text)

        noisy = replace(spec, noise_seed=seed)
        result = serve(arguments.mode, noisy, router_of(arguments.router), arguments.engines, workload, on_progress)
        trials.append(trial(seed, workload, result, arguments.duration_s))
    found = contender(
        spec.policy,
        trials,
        arguments.duration_s,
        float(spec.num_blocks * spec.block_size * arguments.engines),
        traffic.tenant_names,
    )
    offered_rate = rate or float(np.mean([len(t.workload) for t in trials])) / arguments.duration_s
    return Cell(spec.policy, offered_rate, tuple(trials), found)


def _print(cells: Sequence[Cell], goal: float) -> None:
    rates = sorted({cell.rate for cell in cells})
    if len(rates) > 1:
        policies = list(dict.fromkeys(cell.policy for cell in cells))
        rows = [[number(rate), *(_attainment(cell.contender) for cell in cells if cell.rate == rate)] for rate in rates]
        print_table("Attainment by rate", ["req/s", *policies], rows)
        print("\n".join(_sustained(cells, goal)))
    for rate in rates:
        if len(rates) > 1:
            print()
        _print_rate([cell for cell in cells if cell.rate == rate])
    if len(rates) == 1 and len(cells[0].contender.tenants) > 1:
        print()
        _print_tenants([cell.contender for cell in cells])


def _print_rate(cells: Sequence[Cell]) -> None:
    found = [cell.contender for cell in cells]
    lines: list[tuple[str, Callable[[Contender], str]]] = [
        ("attainment", _attainment),
        ("good requests/s", lambda c: _with_interval([s.goodput_per_s for s in c.seeds], 2)),
        ("output tokens/s", lambda c: number(c.pooled.output_tokens_per_s)),
        ("TTFT p50 p90 p99", lambda c: " ".join(map(seconds, c.pooled.ttft_s))),
        ("TPOT p50 p90 p99", lambda c: " ".join(map(seconds, c.pooled.tpot_s))),
        ("E2E  p50 p90 p99", lambda c: " ".join(map(seconds, c.pooled.e2e_s))),
        ("program mean p50 p99", lambda c: " ".join(map(seconds, c.programs_s))),
        ("Jain's index", lambda c: f"{c.jain:.3f}"),
        ("preempted per 1000", lambda c: number(c.preemptions)),
        ("prefix cache hits", lambda c: f"{100 * c.hit_rate:.1f} %"),
    ]
    if np.isnan(found[0].programs_s[0]):
        lines = [line for line in lines if not line[0].startswith("program")]
    seeds = [str(t.seed) for t in cells[0].trials]
    if len(found) > 1 and len(seeds) > 2:
        lines.insert(1, (f"  over {found[0].name}", lambda c: _gain(found[0], c)))
    spread = ", \u00b1 is the 95 % interval" if len(seeds) > 2 else ""
    asked = f"{number(cells[0].rate)} requests/s, {found[0].pooled.requests:,} requests, seeds {','.join(seeds)}"
    print_table(
        f"{asked}; seconds{spread}", ["", *(c.name for c in found)], [[name, *map(cell, found)] for name, cell in lines]
    )


def _print_tenants(found: Sequence[Contender]) -> None:
    busiest = sorted(range(len(found[0].tenants)), key=lambda index: -found[0].tenants[index].summary.requests)
    rows = []
    for index in busiest[:MAX_TENANTS]:
        first = found[0].tenants[index]
        cells = []
        for c in found:
            own = c.tenants[index].summary
            cells.append(f"{100 * own.attainment:.1f} % {seconds(own.ttft_s[0])} {seconds(own.ttft_s[2])}")
        rows.append([first.name, f"{first.summary.requests:,}", *cells])
    title = "By tenant: attainment, TTFT p50 and p99"
    print_table(title, ["", "requests", *(c.name for c in found)], rows)
    if len(busiest) > MAX_TENANTS:
        print(f"and {len(busiest) - MAX_TENANTS} tenants more, in --json and --report")


def _attainment(found: Contender) -> str:
    return _with_interval([100 * s.attainment for s in found.seeds], 1) + " %"


def _gain(first: Contender, other: Contender) -> str:
    """The seeds are the same traffic for both, so what differs is differences, seed by seed."""
    if other is first:
        return ""
    pairs = zip(other.seeds, first.seeds, strict=True)
    return _with_interval([100 * (a.attainment - b.attainment) for a, b in pairs], 1) + " %"


def _with_interval(values: Sequence[float], digits: int) -> str:
    mean, half = interval(np.array(values))
    return f"{mean:.{digits}f}" if np.isnan(half) else f"{mean:.{digits}f} \u00b1 {half:.{digits}f}"


def _as_json(cell: Cell) -> dict[str, Any]:
    found = cell.contender
    attainment, half = interval(np.array([s.attainment for s in found.seeds]))
    return {
        "policy": cell.policy,
        "rate_per_s": cell.rate,
        "attainment": attainment,
        "attainment_interval": None if np.isnan(half) else [attainment - half, attainment + half],
        "all_seeds": asdict(found.pooled),
        "seeds": [
            {"seed": t.seed, **asdict(t.summary), "outcome_hash": f"{t.result.outcome_hash:016x}"} for t in cell.trials
        ],
        "tenants": [
            {"name": t.name, "weight": t.weight, "service": t.service, **asdict(t.summary)} for t in found.tenants
        ],
        "program_mean_p50_p99_s": found.programs_s,
        "jain": found.jain,
        "preemptions_per_1000": found.preemptions,
        "hit_rate": found.hit_rate,
    }


def _report(arguments: argparse.Namespace, spec: EngineSpec, cells: Sequence[Cell]) -> str:
    rates = sorted({cell.rate for cell in cells})
    last = [cell.contender for cell in cells if cell.rate == rates[-1]]
    sections = [summary_section(last), latency_section(last), timeline_section(last)]
    if len(last[0].tenants) > 1:
        sections.append(fairness_section(last))
    names = ", ".join(c.name for c in last)
    title = f"{names} at {number(rates[-1])} requests per second"
    lead = "Requests within their SLOs: " + "; ".join(f"{c.name} {100 * c.attainment:.1f} %" for c in last) + "."
    if len(rates) > 1:
        sections = [replace(s, title=f"{s.title}, at {number(rates[-1])} requests per second") for s in sections]
        sections.insert(0, _curves(cells, arguments.attainment))
        title = f"{names} at {number(rates[0])} to {number(rates[-1])} requests per second"
        lead = " ".join(_sustained(cells, arguments.attainment))
    return page(title, lead, sections, Origin(arguments.command_line, arguments.seeds, engine_facts(arguments, spec)))


def _sustained(cells: Sequence[Cell], goal: float) -> list[str]:
    """For each policy, up to which of the rates the goal is met."""
    said = []
    for policy in dict.fromkeys(cell.policy for cell in cells):
        mine = sorted((cell.rate, cell.contender.attainment) for cell in cells if cell.policy == policy)
        kept = [rate for rate, _ in itertools.takewhile(lambda cell: cell[1] >= goal, mine)]
        up_to = f"up to {number(kept[-1])} requests per second" if kept else "at none of these rates"
        said.append(f"{policy} keeps {100 * goal:g} % {up_to}.")
    return said


def _curves(cells: Sequence[Cell], goal: float) -> Section:
    curves = []
    for policy in dict.fromkeys(cell.policy for cell in cells):
        mine = [cell for cell in cells if cell.policy == policy]
        spread = [interval(np.array([s.attainment for s in cell.contender.seeds])) for cell in mine]
        mean = np.array([value for value, _ in spread])
        half = np.nan_to_num(np.array([value for _, value in spread]))
        rates = np.array([cell.rate for cell in mine])
        curves.append(Curve(policy, rates, mean, np.maximum(mean - half, 0), np.minimum(mean + half, 1)))
    text = f"{100 * goal:g} % is the goal; bands are 95 % intervals over seeds."
    return curve_section("How far each policy goes", text, [(Axis("requests per second"), curves)], goal)
