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
from burrstone.bench.report.read import Compare, Found, Judged, Peers, Run, Slo, Summary

_TOKENS = 1_000_000
_MOST_FAILURES = 5
_JUDGED = {True: "met", False: "missed", None: "not measured"}


def headline_section(runs: Sequence[Summary]) -> Section:
    """The figures of each run, in two tables: one would be too wide for paper."""
    head = ["run", "offered", "failed", "within SLOs", "goodput, req/s", "req/s", "output tokens/s", "cached prompt"]
    latencies = [(what, q) for what in ("ttft", "tpot", "e2el") for q in ("p50", "p99")]
    times_head = ["run", *(f"{what.removesuffix('l').upper()} {q}, ms" for what, q in latencies), "queue mean, ms"]
    rows, times = list[list[str | Bar]](), list[list[str | Bar]]()
    for run in runs:
        found = run.result
        rates = ("goodput_rps", "request_throughput", "output_throughput")
        row = [run.name, f"{found['offered']:,}", f"{found['failed']:,}", percent(found["slo_attainment"])]
        rows.append([*row, *(_number(found[name]) for name in rates), percent(found.get("cached_token_share"))])
        spread = [_number(found[f"{q}_{what}_ms"]) for what, q in latencies]
        times.append([run.name, *spread, _number(found.get("mean_queue_ms"))])
    goodputs = [run.result["goodput_rps"] for run in runs]
    best = int(np.argmax(goodputs)) if len(runs) > 1 and any(goodputs) else None
    text = (
        "Goodput: answers within all of their SLOs a second; what failed, was refused or timed out is offered and bad."
    )
    between = '<p class="soft">TTFT and E2E count from the intended sending.</p>'
    body = table(*_known(head, rows), best) + between + table(*_known(times_head, times), best)
    return Section("Result", text, _late(runs) + body)


def failures_section(runs: Sequence[Summary]) -> Section:
    """Why requests failed."""
    rows: list[tuple[str, str]] = []
    for run in runs:
        told = run.failures.most_common(_MOST_FAILURES)
        if rest := run.failures.total() - sum(count for _, count in told):
            told.append((f"{len(run.failures) - len(told)} other reasons", rest))
        rows += [(f"{run.name}: {count:,}", reason) for reason, count in told]
    return Section("Failures", "Failed requests by reason, as the server or the client gave it.", _list(rows))


def latencies_section(drawings: Sequence[Drawing]) -> Section:
    """Distributions."""
    text = "Share that took at most so long. A line that ends below 100 % lost the others: they were not answered."
    return Section("Latencies", text, _charts(drawings))


def capacity_section(slos: Sequence[Slo], drawings: Sequence[Drawing]) -> Section:
    """What was sustained, and the curves."""
    said = [f"{slo.name}: {capacity_text(slo)}." for slo in slos]
    text = " ".join([*said, "Bands are one-sided 95 % bounds (Wilson) on either side."])
    return Section("Rate and goodput", text, _late(slos) + _charts(drawings))


def capacity_text(slo: Slo) -> str:
    """The capacity in words."""
    sustained, failed = slo.result["sustained_rps"], slo.result["failed_rps"]
    goal = f"{100 * slo.result['attainment']:g} %"
    told = f"sustained {f'{number(sustained)} requests/s' if sustained else 'no rate'} with {goal} within SLOs"
    if failed is not None:
        told += f", but not {number(failed)}"
    return f"{told} (ended early: {ended})" if (ended := slo.result.get("ended")) else told


def timeline_section(runs: Sequence[Run], drawings: Sequence[Drawing]) -> Section:
    """Charts over time, and why some runs are not in all of them."""
    absent = [
        f"{run.name}: no metrics of the server ({run.result['timeline_missing']})."
        for run in runs
        if "timeline_missing" in run.result
    ]
    text = "In flight and output tokens are the client's; the rest is what the server's metrics say, once a second."
    return Section("Timeline", " ".join([text, *absent]), _charts(drawings))


def tenants_section(runs: Sequence[Summary]) -> Section:
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
            rows.append([name, run.name, f"{own['offered']:,}", percent(own["slo_attainment"]), *latencies, bar])
        of_slos = jain(np.array([own["slo_attainment"] for own in tenants.values()]))
        said.append(f"{run.name} {of_slos:.3f} and {jain(np.array(list(tokens.values()))):.3f}")
    text = (
        f"Jain's index of attainment and of output tokens: {'; '.join(said)}. 1 means that all tenants had the same, 1 / n "
        "that one of n had everything. Tenants that ask for less get fewer tokens, however fair the server is."
    )
    return Section("Tenants", text, table(head, rows, words=2))


def cost_section(runs: Sequence[Summary], cost_per_hour: float) -> Section:
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
            cells = [_number(row["A"]), _number(row["B"]), *_ratio(row), percent(row["noise"])]
            rows.append([FIGURE_WORDS[figure], verdict(row, more_is_better=more_is_better), *cells])
    servers = " and ".join(
        f"{name}: {server}" for name, server in zip("AB", compare.setting.get("servers", "AB"), strict=False)
    )
    text = (
        f"{servers}. Ratios are B over A, with a bootstrap interval over rounds. The noise is how far A was from itself within a "
        "round: a difference within it is none, nor is one whose interval holds 1. There is no ratio to nothing."
    )
    for name, told in (("failed", "Failed requests"), ("other_lengths", "Answers of another length than asked for")):
        if any(found.get(name, {}).values()):
            text += f" {told}: A {found[name]['A']}, B {found[name]['B']}."
    head = ["figure", "", "A", "B", "B / A", compare.interval, "A / A noise"]
    return Section(
        f"Comparison: {compare.name}", text, _late([compare]) + table(head, rows, words=2) + _charts(drawings)
    )


def verdict(row: dict[str, Any], *, more_is_better: bool) -> str:
    """Of a figure's ratio, if it has one, whether it differs from 1 at all, and to whose good."""
    if row["ratio"] is None:
        return "-"
    if row["low"] <= 1 <= row["high"] or abs(row["ratio"] - 1) <= row["noise"]:
        return "no difference shown"
    return "B is better" if (row["ratio"] > 1) == more_is_better else "A is better"


def peers_section(peers: Peers, drawings: Sequence[Drawing]) -> Section:
    """All servers, each alone on the machine, and what was to be reached."""
    found, setting = peers.result, peers.setting
    noise: dict[str, float | None] = found["noise"]
    head = ["server", "precision", *(f"{streams} stream{'s' if streams != '1' else ''}" for streams in noise)]
    rows: list[list[str | Bar]] = []
    for name, peer in found["peers"].items():
        each = [peer["streams"][streams] for streams in noise]
        told = [f"{number(row['output_throughput'])} ({number(row['median_ttft_ms'])} ms)" for row in each]
        # Its details are in what the server is.
        rows.append([name, peer["precision"].partition(" (")[0], *told])
    rows.append(["noise", "", *map(percent, noise.values())])
    text = (
        f"Output tokens/s, in brackets TTFT p50, with {setting['input_tokens']} tokens in and {setting['output_tokens']} out: "
        f"medians of {setting['rounds']} rounds, each server alone on the machine. The noise is how far servers are from "
        "themselves between rounds."
    )
    facts = {name: str(peer["what"]) for name, peer in found["peers"].items()}
    for name, floor in found.get("floor", {}).items():
        most = f"{number(floor['tokens_per_s'])} tokens/s that memory allows"
        facts[name] += f"; one stream reaches {percent(floor['reached'])} of the {most}"
    # A server that did not start gives its whole log as the reason.
    facts |= {name: "left out: " + reason.split(":\n")[0] for name, reason in found["skipped"].items()}
    body = table(head, rows, words=2) + _list(list(facts.items())) + _charts(drawings) + _goals(peers)
    return Section(f"Beside other servers: {peers.name}", text, body)


def features_section(features: Judged) -> Section:
    """What features bring, and what they were to bring."""
    said = [
        f"{_words(name)}: {'the same texts' if row['same_texts'] else 'not the same texts'} as without."
        for name, row in features.rows.items()
        if "same_texts" in row
    ]
    return Section(f"Features: {features.name}", " ".join(said), _goals(features))


def setting_section(found: Sequence[Found]) -> Section:
    """Commands, and where they ran: what all have in common once, the rest by file."""
    facts = {
        one.name: {name: told for name, value in one.setting.items() if (told := _plain(value)) != "-"}
        for one in found
        if one.setting
    }
    if not facts:
        return Section("Setting", "The files do not say: records alone have no setting.", "")
    commands = [(name, own.pop("command")) for name, own in facts.items() if "command" in own]
    shared = set.intersection(*(set(own.items()) for own in facts.values()))
    common = [fact for fact in next(iter(facts.values())).items() if fact in shared]
    rest = [(name, [fact for fact in own.items() if fact not in shared]) for name, own in facts.items()]
    body = "".join(f"<p>{escape(name)}</p><pre><code>{escape(command)}</code></pre>" for name, command in commands)
    body += _list(common) + _list([(name, "; ".join(map(": ".join, own))) for name, own in rest if own])
    return Section("Setting", "", body)


def _late(found: Sequence[Found]) -> str:
    """A client that was too slow measured itself, and that is said first; so is why there was no run."""
    said = []
    for one in found:
        if warning := one.result.get("warning"):
            said.append(f"{one.name}: {warning}")
        elif one.result["client_was_bottleneck"]:
            late_ms = max(one.result["lateness_p99_ms"], one.result.get("client_lag_p99_ms", 0.0))
            said.append(f"{one.name}: the client was up to {late_ms:.1f} ms late (p99): this measured the client.")
    return "".join(f'<p class="bad">{escape(text)}</p>' for text in said)


def _charts(drawings: Sequence[Drawing]) -> str:
    """Their lines have the same names in the same order, but one may have more."""
    names = max(([series.name for series in drawing.series] for drawing in drawings), key=len, default=[])
    charts = [(d.title, d.text, chart(d.series, d.x_axis, d.y_axis)) for d in drawings]
    return legend(names) + figures(charts) if charts else ""


def _goals(judged: Judged) -> str:
    rows: list[list[str | Bar]] = []
    for name, row in judged.rows.items():
        rounds = row.get("rounds", [])
        spread = f"{min(rounds):g} to {max(rounds):g}" if len(rounds) > 1 else "-"
        reached = "-" if row["value"] is None else f"{row['value']:g}"
        rows.append([_words(name), _JUDGED[row["ok"]], reached, row["goal"], percent(row.get("noise")), spread])
    head, rows = _known(["figure", "", "reached", "goal", "noise", "in rounds"], rows)
    return table(head, rows, words=2) if rows else ""


def _known(head: list[str], rows: list[list[str | Bar]]) -> tuple[list[str], list[list[str | Bar]]]:
    """The columns in which any row has something."""
    known = [place for place in range(len(head)) if any(row[place] != "-" for row in rows)]
    return [head[place] for place in known], [[row[place] for place in known] for row in rows]


def _list(rows: Sequence[tuple[str, str]]) -> str:
    """Words that wrap, each beside its name."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in rows)}</dl>"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _ratio(row: dict[str, Any]) -> list[str]:
    """It and its interval."""
    return ["-", "-"] if row["ratio"] is None else [f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]


def _plain(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(own)}" for name, own in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
