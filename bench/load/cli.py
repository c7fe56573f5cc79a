"""`burrstone bench run`: offer a workload to an OpenAI-compatible server and say how it was served."""

import argparse
import asyncio
import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli.traffic import Traffic, print_workloads
from burrstone.batching.sim.traffic.workload import evenly
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.load.drive import Drive, Terms
from burrstone.bench.load.record import Record, write_records
from burrstone.bench.load.summary import MAX_LATENESS_MS, by_tenant, detailed, summarize
from burrstone.bench.load.wires import ROUTES, GrpcWire, HttpWire, Wire
from burrstone.bench.machine import machine

_LEAD_S = 0.5
_JSON_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}
_FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "item", "schema": _JSON_SCHEMA}}}
# Workloads that are another one, worded differently.
_WORDED = {"json": "chat", "lora": "chat", "agent": "agents"}


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
    run.add_argument("--url", help="http(s)://host:port, or host:port with --grpc [http://127.0.0.1:8000]")
    run.add_argument("--grpc", action="store_true", help="over burrstone's gRPC API [127.0.0.1:9000]")
    run.add_argument("--workload", default="chat", metavar="NAME", help="`list` shows them; trace:PATH [chat]")
    load = run.add_mutually_exclusive_group()
    load.add_argument("--rate", type=float, metavar="R", help="requests a second, open loop [4; a trace's own]")
    load.add_argument("--concurrency", type=int, metavar="C", help="clients that take turns, closed loop")
    run.add_argument("--duration-s", type=float, default=60.0, metavar="S", help="of arrivals [%(default)g]")
    run.add_argument("--num-requests", type=int, metavar="N", help="at most so many requests")
    run.add_argument("--arrivals", choices=["workload", "constant"], default="workload", help="[the workload's own]")
    run.add_argument("--api", choices=sorted(ROUTES), default="chat", help="[%(default)s]")
    run.add_argument(
        "--model", action="append", metavar="NAME", help="repeat for several in turns [the server's first]"
    )
    run.add_argument("--key", action="append", metavar="KEY", help="API key; repeat for one a tenant, in turns")
    run.add_argument("--ttft-s", type=float, metavar="S", help="SLO: first token [1, where no SLO is given]")
    run.add_argument("--tpot-s", type=float, metavar="S", help="SLO: each further token [0.05, where none is given]")
    run.add_argument("--e2e-s", type=float, metavar="S", help="SLO: the whole answer")
    run.add_argument("--timeout-s", type=float, default=600.0, metavar="S", help="of a request [%(default)g]")
    run.add_argument("--stop-early", action="store_true", help="let the model end its answers")
    run.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    run.add_argument("--json", type=Path, metavar="OUT", help="write the summary here, `-` for stdout")
    run.add_argument("--records", type=Path, metavar="FILE", help="write one JSON line a request here")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.workload == "list":
        print_workloads()
        print("agent, json, lora\n    agents; chats that answer by a JSON schema; chats for each --model in turns")
        return 0
    workload, tenants = _workload(arguments)
    url = arguments.url or ("127.0.0.1:9000" if arguments.grpc else "http://127.0.0.1:8000")
    terms = Terms(
        api=arguments.api,
        models=tuple(arguments.model or [_first_model(arguments, url)]),
        body=_FORMAT if arguments.workload.startswith("json") else {},
        keys=tuple(arguments.key or ()),
        tenants=tenants,
        stop_early=arguments.stop_early or arguments.workload.startswith("json"),
        timeout_s=arguments.timeout_s,
    )
    with tqdm(total=len(workload), unit="request", file=sys.stderr, disable=None) as bar:
        plan = Plan(workload, terms, url, arguments.grpc, arguments.concurrency, arguments.seed)
        records = asyncio.run(offer(plan, lambda _: bar.update()))
    duration_s = max(record.ended_s for record in records if record.ended_s == record.ended_s)
    summary = summarize(records, duration_s)
    result = {
        **summary,
        "tenants": by_tenant(records, duration_s) if len({record.tenant for record in records}) > 1 else {},
        "setting": machine() | _setting(arguments, terms, url),
        **detailed(records),
    }
    if arguments.records is not None:
        write_records(arguments.records, records)
    if arguments.json is not None and str(arguments.json) != "-":
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if str(arguments.json) == "-" else table(summary))
    if summary["client_was_bottleneck"]:
        print(
            f"burrstone: requests were sent up to {summary['lateness_p99_ms']:.1f} ms late (p99; {MAX_LATENESS_MS:g} is "
            "allowed): this measured the client. Lower the rate, or run it on cores of its own",
            file=sys.stderr,
        )
    return 1 if summary["client_was_bottleneck"] or not summary["completed"] else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is offered, and where. `concurrency` None: open loop."""

    workload: Workload
    terms: Terms
    url: str
    grpc: bool = False
    concurrency: int | None = None
    seed: int = 0


async def offer(plan: Plan, tick: Any = lambda _: None) -> list[Record]:
    """Make one run, on the running event loop."""
    clock = asyncio.get_running_loop().time
    zero_s = clock() + _LEAD_S

    def now() -> float:
        return clock() - zero_s

    wire: Wire = GrpcWire(plan.url, plan.terms.api, now) if plan.grpc else HttpWire(plan.url, plan.terms.api, now)
    drive = Drive(plan.workload, plan.terms, wire, now, plan.seed, tick)
    try:
        if plan.concurrency is None:
            return await drive.open_loop()
        await asyncio.sleep(_LEAD_S)
        return await drive.closed_loop(plan.concurrency)
    finally:
        await wire.close()


def _workload(arguments: argparse.Namespace) -> tuple[Workload, tuple[str, ...]]:
    if arguments.rate is not None and not arguments.rate > 0:
        raise UsageError(f"--rate must be > 0, got {arguments.rate:g}")
    if arguments.concurrency is not None and arguments.concurrency < 1:
        raise UsageError(f"--concurrency must be at least 1, got {arguments.concurrency}")
    name, colon, parameters = arguments.workload.partition(":")
    arguments.workload = _WORDED.get(name, name) + colon + parameters
    traffic = Traffic(arguments)
    arguments.workload = name + colon + parameters
    made = traffic.offered(arguments.rate, arguments.seed)
    if arguments.arrivals == "constant":
        made = evenly(made)
    if arguments.num_requests is not None:
        made = made.take(np.arange(min(arguments.num_requests, len(made))))
    return made, traffic.tenant_names


def _first_model(arguments: argparse.Namespace, url: str) -> str:
    if arguments.grpc:
        return "default"
    request = urllib.request.Request(f"{url.rstrip('/').removesuffix('/v1')}/v1/models")
    if arguments.key:
        request.add_header("Authorization", f"Bearer {arguments.key[0]}")
    try:
        with urllib.request.urlopen(request, timeout=10.0) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except (OSError, urllib.error.URLError, ValueError, LookupError) as error:
        raise UsageError(
            f"--url {url}: no list of models there ({error}); is the server up? or give --model"
        ) from error


def _setting(arguments: argparse.Namespace, terms: Terms, url: str) -> dict[str, Any]:
    names = ("workload", "rate", "concurrency", "duration_s", "num_requests", "arrivals", "api", "seed")
    return {name: getattr(arguments, name) for name in names} | {"models": list(terms.models), "url": url}


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
    lines += [f"{count:6} x {error}" for error, count in summary["errors"].items()]
    return "\n".join(lines)
