"""The parts of a load report: tables, and drawings as SVG."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from burrstone.batching.sim.measures import jain
from burrstone.batching.sim.report.page import Bar, Section, figures, table
from burrstone.batching.sim.report.plots import chart, legend, number
from burrstone.bench.load.compare import FIGURES
from burrstone.bench.report.drawings import FIGURE_WORDS, Drawing
from burrstone.bench.report.read import Compare, Found, Run, Slo

_TOKENS = 1_000_000


def headline_section(runs: Sequence[Run]) -> Section:
    """The figures of each run in one table."""
    head = ["run", "offered", "failed", "within SLOs", "goodput, req/s", "req/s", "output tokens/s"]
    latencies = [(what, q) for what in ("ttft", "tpot", "e2el") for q in ("p50", "p99")]
    head += [f"{what.removesuffix('l').upper()} {q}, ms" for what, q in latencies]
    head += ["queue mean, ms", "cached prompt"]
    rows: list[list[str | Bar]] = []
    for run in runs:
        found = run.result
        rates = ("goodput_rps", "request_throughput", "output_throughput")
        row = [run.name, f"{found['offered']:,}", f"{found['failed']:,}", _percent(found["slo_attainment"])]
        row += [_number(found[name]) for name in rates]
        row += [_number(found[f"{q}_{what}_ms"]) for what, q in latencies]
        rows.append([*row, _number(found.get("mean_queue_ms")), _percent(found["cached_token_share"])])
    best = int(np.argmax([run.result["goodput_rps"] for run in runs])) if len(runs) > 1 else None
    known = [place for place in range(len(head)) if any(row[place] != "-" for row in rows)]
    head, rows = [head[place] for place in known], [[row[place] for place in known] for row in rows]
    text = (
        "Goodput: answers within all of their SLOs a second; what failed, was refused or timed out is offered and bad. "
        "TTFT and E2E count from the intended sending."
    )
    return Section("Result", text, _late(runs) + table(head, rows, best))


def drawn_section(title: str, text: str, drawings: Sequence[Drawing]) -> Section:
    """Charts whose lines have the same names in the same order, but that one may have more."""
    names = max(([series.name for series in drawing.series] for drawing in drawings), key=len)
    charts = [(d.title, d.text, chart(d.series, d.x_axis, d.y_axis)) for d in drawings]
    return Section(title, text, legend(names) + figures(charts))


def capacity_section(slos: Sequence[Slo], drawings: Sequence[Drawing]) -> Section:
    """What was sustained, and the curves."""
    said = [f"{slo.name}: {capacity_text(slo)}." for slo in slos]
    text = " ".join([*said, "Bands are one-sided 95 % bounds (Wilson) on either side."])
    return Section("Rate and goodput", text, _late(slos) + drawn_section("", "", drawings).body)


def capacity_text(slo: Slo) -> str:
    """The capacity in words."""
    sustained, failed = slo.result["sustained_rps"], slo.result["failed_rps"]
    goal = f"{100 * slo.result['attainment']:g} %"
    kept = (
        f"{number(sustained)} requests/s with {goal} within SLOs" if sustained else f"no rate with {goal} within SLOs"
    )
    return f"sustained {kept}" + (f", but not {number(failed)}" if failed is not None else "")


def timeline_section(runs: Sequence[Run], drawings: Sequence[Drawing]) -> Section:
    """Charts over time, and why some runs are not in all of them."""
    absent = [
        f"{run.name}: no metrics of the server ({run.result['timeline_missing']})."
        for run in runs
        if "timeline_missing" in run.result
    ]
    text = "In flight and output tokens are the client's; the rest is what the server's metrics say, once a second."
    return drawn_section("Timeline", " ".join([text, *absent]), drawings)


def tenants_section(runs: Sequence[Run]) -> Section:
    """Each tenant in each run, and how even that is."""
    head = ["tenant", "run", "offered", "within SLOs", "TTFT p50, ms", "TTFT p99, ms", "output tokens"]
    rows: list[list[str | Bar]] = []
    said = []
    for run in runs:
        tenants: dict[str, dict[str, Any]] = run.result["tenants"]
        tokens = {name: float(own["total_output_tokens"]) for name, own in tenants.items()}
        for name, own in tenants.items():
            bar = Bar(number(tokens[name]), tokens[name] / max(*tokens.values(), 1.0))
            latencies = [_number(own["p50_ttft_ms"]), _number(own["p99_ttft_ms"])]
            rows.append([name, run.name, f"{own['offered']:,}", _percent(own["slo_attainment"]), *latencies, bar])
        of_slos = jain(np.array([own["slo_attainment"] for own in tenants.values()]))
        said.append(f"{run.name} {of_slos:.3f} and {jain(np.array(list(tokens.values()))):.3f}")
    text = (
        f"Jain's index of attainment and of output tokens: {'; '.join(said)}. 1 means that all tenants had the same, 1 / n "
        "that one of n had everything. Tenants that ask for less get fewer tokens, however fair the server is."
    )
    return Section("Tenants", text, table(head, rows, words=2))


def cost_section(runs: Sequence[Run], cost_per_hour: float) -> Section:
    """What a million output tokens cost."""
    rows: list[list[str | Bar]] = []
    for run in runs:
        tokens_per_s = run.result["output_throughput"]
        cost = _TOKENS * cost_per_hour / (3600 * tokens_per_s) if tokens_per_s else None
        rows.append([run.name, _number(tokens_per_s), _number(cost)])
    text = (
        "Cost per million output tokens = cost per hour / (output tokens per second x 3600) x 1,000,000, at "
        f"{number(cost_per_hour)} an hour. It holds at the load of the run: a server that idles costs the same."
    )
    return Section("Cost", text, table(["run", "output tokens/s", "cost per million output tokens"], rows))


def compare_section(compare: Compare, drawings: Sequence[Drawing]) -> Section:
    """B over A, beside how far A is from itself."""
    found, rows = compare.result, list[list[str | Bar]]()
    for figure, more_is_better in FIGURES.items():
        if figure in found:
            row = found[figure]
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            cells = [_number(row["A"]), _number(row["B"]), f"{row['ratio']:.3f}", interval, _percent(row["noise"])]
            rows.append([FIGURE_WORDS[figure], verdict(row, more_is_better=more_is_better), *cells])
    servers = " and ".join(
        f"{name}: {server}" for name, server in zip("AB", compare.setting.get("servers", "AB"), strict=False)
    )
    text = (
        f"{servers}. Ratios are B over A, with a 95 % bootstrap interval over rounds. The noise is how far A was from itself "
        "within a round: a difference within it is none, nor is one whose interval holds 1."
    )
    if any(found["failed"].values()):
        text += f" Failed requests: A {found['failed']['A']}, B {found['failed']['B']}."
    body = _late([compare]) + table(["figure", "", "A", "B", "B / A", "95 % interval", "A / A noise"], rows, words=2)
    charts = drawn_section("", "", drawings).body if drawings else ""
    return Section(f"Comparison: {compare.name}", text, body + charts)


def verdict(row: dict[str, Any], *, more_is_better: bool) -> str:
    """Of a figure's ratio, whether it differs from 1 at all, and to whose good."""
    if row["low"] <= 1 <= row["high"] or abs(row["ratio"] - 1) <= row["noise"]:
        return "no difference shown"
    return "B is better" if (row["ratio"] > 1) == more_is_better else "A is better"


def setting_section(found: Sequence[Found]) -> Section:
    """Commands, and where they ran: what all have in common once, the rest by file."""
    facts = {one.name: {name: _plain(value) for name, value in one.setting.items()} for one in found}
    commands = [(name, own.pop("command")) for name, own in facts.items() if "command" in own]
    names = list(dict.fromkeys(name for own in facts.values() for name in own))
    values = {name: [own.get(name, "-") for own in facts.values()] for name in names}
    common = {name: those[0] for name, those in values.items() if len(set(those)) == 1 and those[0] != "-"}
    differing = [[name, *those] for name, those in values.items() if len(set(those)) > 1]
    body = "".join(f"<p>{escape(name)}</p><pre><code>{escape(command)}</code></pre>" for name, command in commands)
    body += f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in common.items())}</dl>"
    if differing:
        body += table(["", *facts], differing, words=1 + len(facts))
    return Section("Setting", "" if names else "The files do not say: records alone have no setting.", body)


def _late(found: Sequence[Found]) -> str:
    """A client that was too slow measured itself, and that is said first."""
    late = [
        f"{one.name}: requests were sent up to {one.result['lateness_p99_ms']:.1f} ms late (p99): this measured the client."
        for one in found
        if one.result["client_was_bottleneck"]
    ]
    return "".join(f'<p class="bad">{escape(text)}</p>' for text in late)


def _plain(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
