"""`burrstone bench report`: results of the bench commands as one HTML file, and as pictures."""

import argparse
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.report.page import Origin, Section, page
from burrstone.batching.sim.report.plots import number
from burrstone.bench.files import whole_file
from burrstone.bench.report.drawings import (
    Drawing,
    compare_drawings,
    latency_drawings,
    peers_drawings,
    rate_drawings,
)
from burrstone.bench.report.read import Results, read_results
from burrstone.bench.report.sections import (
    capacity_section,
    capacity_text,
    compare_section,
    cost_section,
    failures_section,
    features_section,
    headline_section,
    latencies_section,
    peers_section,
    percent,
    setting_section,
    tenants_section,
    timeline_section,
    verdict,
)
from burrstone.bench.report.timeline import timeline_drawings

_MOST_NAMED = 3


def add_parser(kinds: Any) -> None:
    report = kinds.add_parser(
        "report",
        help="one HTML file from results of the others",
        description=(
            "Read results of `bench run`, `slo` and `compare` (--json), `peers` and `features` (--out), `locust` (--json-out) "
            "and of `bench run --records`, and write one HTML file with their tables and charts that needs nothing else. "
            "FILE.json and FILE.jsonl are one run."
        ),
    )
    report.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what these wrote")
    report.add_argument("--out", type=Path, required=True, metavar="FILE", help="the HTML file")
    report.add_argument("--png", type=Path, metavar="FOLDER", help="also write each chart as a picture here")
    report.add_argument("--cost-per-hour", type=float, metavar="X", help="of all that serves, in any currency")
    report.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    cost = arguments.cost_per_hour
    if cost is not None and not 0 < cost < math.inf:
        raise UsageError(f"--cost-per-hour must be > 0, got {cost:g}")
    results = read_results(arguments.files)
    sections, drawings = _parts(results, cost)
    origin = Origin(arguments.command_line, [], {"burrstone": version("burrstone")}, "From the same files.")
    html = page(_title(results), _lead(results), sections, origin)
    with whole_file(arguments.out) as scratch:
        scratch.write_text(html, encoding="utf-8")
    print(f"report: {arguments.out}")
    if arguments.png is not None:
        from burrstone.bench.report.png import write_pngs

        for file in write_pngs(arguments.png, drawings):
            print(f"picture: {file}")
    return 0


def _parts(results: Results, cost_per_hour: float | None) -> tuple[list[Section], list[Drawing]]:
    runs, summaries, sections = results.runs, results.summaries, list[Section]()
    drawings = rates = rate_drawings(results.slos, runs)
    if summaries:
        sections.append(headline_section(summaries))
    if failing := [run for run in summaries if run.failures]:
        sections.append(failures_section(failing))
    if rates:
        sections.append(capacity_section(results.slos, rates))
    for compare in results.compares:
        drawn = compare_drawings(compare)
        sections.append(compare_section(compare, drawn))
        drawings = [*drawings, *drawn]
    for peers in results.peers:
        drawn = peers_drawings(peers)
        sections.append(peers_section(peers, drawn))
        drawings = [*drawings, *drawn]
    sections += map(features_section, results.features)
    if latencies := latency_drawings(runs):
        sections.append(latencies_section(latencies))
    if timeline := timeline_drawings(runs):
        sections.append(timeline_section(runs, timeline))
    drawings = [*drawings, *latencies, *timeline]
    if shared := [run for run in summaries if len(run.result["tenants"]) > 1]:
        sections.append(tenants_section(shared))
    if summaries and cost_per_hour is not None:
        sections.append(cost_section(summaries, cost_per_hour))
    return [*sections, setting_section(results.all)], drawings


def _title(results: Results) -> str:
    names = [found.name for found in results.all]
    rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"Load test: {', '.join(names[:_MOST_NAMED])}{rest}"


def _lead(results: Results) -> str:
    said = [
        f"{run.name}: {number(run.result['goodput_rps'])} good requests/s, {percent(run.result['slo_attainment'])} of all "
        "offered."
        for run in results.summaries
    ]
    said += [f"{slo.name}: {capacity_text(slo)}." for slo in results.slos]
    for compare in results.compares:
        row = compare.result.get("output_throughput", {"ratio": None})
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:.3f} times A's output tokens/s ({row['low']:.3f} to {row['high']:.3f}"
            shown = verdict(row, more_is_better=True)
            said.append(f"{compare.name}: {shown}; B makes {ratio}, {compare.interval}).")
    said += [
        f"{judged.name}: {judged.num_met} of {len(judged.rows)} goals met."
        for judged in (*results.peers, *results.features)
        if judged.rows
    ]
    return " ".join(said)
