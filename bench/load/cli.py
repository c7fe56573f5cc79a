"""`burrstone bench run`: offer a workload to an OpenAI-compatible server and say how it was served."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from burrstone.batching.sim.cli.traffic import print_workloads
from burrstone.bench.load.drive import Terms
from burrstone.bench.load.flags import (
    add_load_flags,
    command_of,
    offered_by,
    tell,
    terms_of,
    text_seed,
    traffic_of,
    until_s,
    url_of,
    without_password,
)
from burrstone.bench.load.offer import Plan, offer
from burrstone.bench.load.record import write_records
from burrstone.bench.load.summary import parts
from burrstone.bench.machine import machine
from burrstone.serving.cli.main import EXIT_STOPPED


def add_parser(kinds: Any) -> None:
    run = kinds.add_parser(
        "run",
        help="offer a workload to a server, and see how it is served",
        description=(
            "Offer a workload to any OpenAI-compatible server. With --rate arrivals are scheduled ahead and wait for nobody "
            "(open loop); with --concurrency so many clients take turns (closed loop, which hides overload). TTFT counts "
            "from the intended time of sending. Exit code 1 when the client itself was the bottleneck, or nothing was "
            "answered."
        ),
    )
    add_load_flags(run)
    run.add_argument("--records", type=Path, metavar="FILE", help="write one JSON line a request here")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.workload == "list":
        print_workloads()
        print("agent, json, lora\n    agents; chats that answer by a JSON schema; chats for each --model in turns")
        return 0
    traffic = traffic_of(arguments)
    workload = offered_by(traffic, arguments, arguments.rate)
    url, terms = url_of(arguments), terms_of(arguments, traffic.tenant_names)
    counted = arguments.concurrency is None or arguments.num_requests is not None
    with tqdm(total=len(workload) if counted else None, unit="request", file=sys.stderr, disable=None) as bar:
        plan = Plan(
            workload,
            terms,
            url,
            arguments.grpc,
            arguments.concurrency,
            until_s(arguments),
            text_seed(arguments),
        )
        offered = asyncio.run(offer(plan, lambda _: bar.update(), watch=True))
    records, summary = offered.records, offered.summary()
    result = {
        **summary,
        "stopped": offered.stopped,
        "setting": machine() | _setting(arguments, terms, url),
        **parts(records, summary["duration"]),
    }
    tell(result, table(summary), arguments.json)
    if arguments.records is not None:
        write_records(arguments.records, records)
    if offered.stopped:
        print("burrstone: stopped; what was under way counts as failed", file=sys.stderr)
        return EXIT_STOPPED
    return 1 if summary["client_was_bottleneck"] or not summary["completed"] else 0


def _setting(arguments: argparse.Namespace, terms: Terms, url: str) -> dict[str, Any]:
    names = ("workload", "rate", "concurrency", "duration_s", "num_requests", "arrivals", "api", "seed", "text_seed")
    asked = {name: getattr(arguments, name) for name in (*names, "ttft_s", "tpot_s", "e2e_s")}
    return asked | {"models": list(terms.models), "url": without_password(url), "command": command_of(arguments)}


def table(summary: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"{summary['completed']} of {summary['offered']} answered, {summary['failed']} failed, in {summary['duration']:.1f} s",
        f"{summary['request_throughput']:.2f} requests/s, {summary['output_throughput']:.1f} output tokens/s",
        f"{summary['goodput_rps']:.2f} requests/s within their SLOs ({100 * summary['slo_attainment']:.1f} % of all offered)",
        f"{'ms':10}{'mean':>10}{'p50':>10}{'p90':>10}{'p95':>10}{'p99':>10}",
    ]
    for label, name in (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2el")):
        keys = (f"mean_{name}_ms", *(f"p{p}_{name}_ms" for p in (50, 90, 95, 99)))
        values = [summary[key] for key in keys]
        lines.append(label.ljust(10) + "".join(f"{'-' if v is None else format(v, '.1f'):>10}" for v in values))
    if summary.get("mean_queue_ms") is not None:
        lines.append(f"in the engine's queue: {summary['mean_queue_ms']:.1f} ms on average, says the server")
    lines += [f"{count:6} x {error}" for error, count in summary["errors"].items()]
    return "\n".join(lines)
