"""What the load commands have in common: which server, which workload, worded how."""

import argparse
import asyncio
import json
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli.traffic import Traffic
from burrstone.batching.sim.traffic.workload import evenly
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.files import whole_file
from burrstone.bench.load.drive import Drive, Terms
from burrstone.bench.load.record import Record
from burrstone.bench.load.server_metrics import ServerMetrics, watching
from burrstone.bench.load.streams import base_url
from burrstone.bench.load.summary import MAX_LATENESS_MS
from burrstone.bench.load.wires import GrpcWire, HttpWire, Wire
from burrstone.bench.stream_client import ROUTES

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


def add_load_flags(parser: argparse.ArgumentParser, *, url: bool = True, amount: bool = True) -> None:
    """url: also which server. amount: also how much load."""
    if url:
        parser.add_argument("--url", help="http(s)://host:port, or host:port with --grpc [http://127.0.0.1:8000]")
        parser.add_argument("--grpc", action="store_true", help="over burrstone's gRPC API [127.0.0.1:9000]")
    parser.add_argument("--workload", default="chat", metavar="NAME", help="`list` shows them; trace:PATH [chat]")
    parser.add_argument("--duration-s", type=float, default=60.0, metavar="S", help="of arrivals [%(default)g]")
    parser.add_argument("--num-requests", type=int, metavar="N", help="at most so many requests")
    parser.add_argument("--arrivals", choices=["workload", "constant"], default="workload", help="[the workload's own]")
    parser.add_argument("--api", choices=sorted(ROUTES), default="chat", help="[%(default)s]")
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="repeat for several in turns [the server's first]"
    )
    parser.add_argument("--key", action="append", metavar="KEY", help="API key; repeat for one a tenant, in turns")
    parser.add_argument("--ttft-s", type=float, metavar="S", help="SLO: first token [1, where no SLO is given]")
    parser.add_argument("--tpot-s", type=float, metavar="S", help="SLO: each further token [0.05, where none is given]")
    parser.add_argument("--e2e-s", type=float, metavar="S", help="SLO: the whole answer")
    parser.add_argument("--timeout-s", type=float, default=600.0, metavar="S", help="of a request [%(default)g]")
    parser.add_argument("--stop-early", action="store_true", help="let the model end its answers")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here, `-` for stdout")
    if amount:
        load = parser.add_mutually_exclusive_group()
        load.add_argument("--rate", type=float, metavar="R", help="requests a second, open loop [4; a trace's own]")
        load.add_argument("--concurrency", type=int, metavar="C", help="clients that take turns, closed loop")


def url_of(arguments: argparse.Namespace) -> str:
    return arguments.url or ("127.0.0.1:9000" if arguments.grpc else "http://127.0.0.1:8000")


def terms_of(arguments: argparse.Namespace, tenants: tuple[str, ...]) -> Terms:
    """Raises UsageError where the server's list of models is needed and not to be had."""
    by_schema = arguments.workload.partition(":")[0] == "json"
    return Terms(
        api=arguments.api,
        models=tuple(arguments.model or [_first_model(arguments, url_of(arguments))]),
        body=_FORMAT if by_schema else {},
        keys=tuple(arguments.key or ()),
        tenants=tenants,
        stop_early=arguments.stop_early or by_schema,
        timeout_s=arguments.timeout_s,
    )


def traffic_of(arguments: argparse.Namespace) -> Traffic:
    """What makes the requests, at any rate: a trace is read once. Raises UsageError."""
    name, colon, parameters = arguments.workload.partition(":")
    worded = {"workload": _WORDED.get(name, name) + colon + parameters}
    return Traffic(argparse.Namespace(**vars(arguments) | worded))


def offered_by(traffic: Traffic, arguments: argparse.Namespace, rate: float | None) -> Workload:
    """The requests at this rate; the traffic's own for None. Raises UsageError."""
    if rate is not None and not rate > 0:
        raise UsageError(f"--rate must be > 0, got {rate:g}")
    concurrency = getattr(arguments, "concurrency", None)
    if concurrency is not None and concurrency < 1:
        raise UsageError(f"--concurrency must be at least 1, got {concurrency}")
    made = traffic.offered(rate, arguments.seed)
    if arguments.arrivals == "constant":
        made = evenly(made)
    if arguments.num_requests is not None:
        made = made.take(np.arange(min(arguments.num_requests, len(made))))
    return made


def command_of(arguments: argparse.Namespace) -> str:
    """The command line without its API keys: results are passed on."""
    words = shlex.split(arguments.command_line)
    for key in arguments.key or ():
        words = ["KEY" if word == key else word.replace(f"={key}", "=KEY") for word in words]
    return shlex.join(words)


def tell(result: dict[str, Any], table: str, out: Path | None) -> None:
    """Write a result where --json says, and print it: as JSON for `-`, else for people. A client that was the bottleneck
    is told on stderr."""
    if out is not None and str(out) != "-":
        with whole_file(out) as scratch:
            scratch.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if str(out) == "-" else table)
    if result["client_was_bottleneck"]:
        print(
            f"burrstone: requests were sent up to {result['lateness_p99_ms']:.1f} ms late (p99; {MAX_LATENESS_MS:g} is "
            "allowed): this measured the client. Lower the rate, or run it on cores of its own",
            file=sys.stderr,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is offered, and where. `concurrency` None: open loop."""

    workload: Workload
    terms: Terms
    url: str
    grpc: bool = False
    concurrency: int | None = None
    seed: int = 0


async def offer(plan: Plan, tick: Callable[[Record], None] = lambda _: None) -> list[Record]:
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


async def offer_watched(plan: Plan, tick: Callable[[Record], None]) -> tuple[list[Record], ServerMetrics]:
    """`offer`, and what the server says of itself meanwhile."""
    if plan.grpc:
        return await offer(plan, tick), ServerMetrics(missing="gRPC has no page of metrics")
    clock = asyncio.get_running_loop().time
    zero_s = clock() + _LEAD_S
    key = plan.terms.keys[0] if plan.terms.keys else None
    async with watching(plan.url, key, lambda: clock() - zero_s) as seen:
        records = await offer(plan, tick)
    return records, seen


def _first_model(arguments: argparse.Namespace, url: str) -> str:
    if arguments.grpc:
        return "default"
    request = urllib.request.Request(f"{base_url(url)}/v1/models")
    if arguments.key:
        request.add_header("Authorization", f"Bearer {arguments.key[0]}")
    try:
        with urllib.request.urlopen(request, timeout=10.0) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except (OSError, urllib.error.URLError, ValueError, LookupError) as error:
        raise UsageError(
            f"--url {url}: no list of models there ({error}); is the server up? or give --model"
        ) from error
