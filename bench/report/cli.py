"""`burrstone bench report`: results of the load commands as one HTML file, and as pictures."""

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
    rate_drawings,
)
from burrstone.bench.report.read import Results, read_results
from burrstone.bench.report.sections import (
    capacity_section,
    capacity_text,
    compare_section,
    cost_section,
    drawn_section,
    headline_section,
    setting_section,
    tenants_section,
    timeline_section,
)
from burrstone.bench.report.timeline import timeline_drawings

_MOST_NAMED = 3


def add_parser(kinds: Any) -> None:
    report = kinds.add_parser(
        "report",
        help="one HTML file from results of run, slo and compare",
        description=(
            "Read results of `bench run`, `bench slo` and `bench compare` (--json) and of `bench run --records`, and write "
            "one HTML file with their tables and charts that needs nothing else. FILE.json and FILE.jsonl are one run."
        ),
    )
    report.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what --json and --records wrote")
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
    runs, sections = results.runs, list[Section]()
    drawings = rates = rate_drawings(results.slos, runs)
    if runs:
        sections.append(headline_section(runs))
    if rates:
        sections.append(capacity_section(results.slos, rates))
    for compare in results.compares:
        drawn = compare_drawings(compare)
        sections.append(compare_section(compare, drawn))
        drawings = [*drawings, *drawn]
    if runs:
        latencies, timeline = latency_drawings(runs), timeline_drawings(runs)
        text = "Share that took at most so long. A line that ends below 100 % lost the others: they were not answered."
        sections += [drawn_section("Latencies", text, latencies), timeline_section(runs, timeline)]
        drawings = [*drawings, *latencies, *timeline]
    if shared := [run for run in runs if run.result["tenants"]]:
        sections.append(tenants_section(shared))
    if runs and cost_per_hour is not None:
        sections.append(cost_section(runs, cost_per_hour))
    return [*sections, setting_section(results.all)], drawings


def _title(results: Results) -> str:
    names = [found.name for found in results.all]
    rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"Load test: {', '.join(names[:_MOST_NAMED])}{rest}"


def _lead(results: Results) -> str:
    said = [
        f"{run.name}: {number(run.result['goodput_rps'])} good requests/s, {100 * run.result['slo_attainment']:.1f} % of all "
        "offered."
        for run in results.runs
    ]
    said += [f"{slo.name}: {capacity_text(slo)}." for slo in results.slos]
    for compare in results.compares:
        row = compare.result["output_throughput"]
        said.append(
            f"{compare.name}: B makes {row['ratio']:.3f} times A's output tokens/s ({row['low']:.3f} to {row['high']:.3f})."
        )
    return " ".join(said)
