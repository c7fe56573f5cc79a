"""What the load commands have in common: which server, which workload, worded how."""

import argparse
import json
import math
import re
import secrets
import shlex
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli.traffic import TRACE, Traffic
from burrstone.batching.sim.traffic.workload import evenly
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.files import check_writable
from burrstone.bench.load.drive import Terms
from burrstone.bench.load.streams import base_url
from burrstone.bench.load.summary import MAX_LATENESS_MS
from burrstone.bench.rows import write
from burrstone.bench.stream_client import ROUTES

# More than any client gets through: an answer takes longer.
_MOST_PER_CLIENT_S = 20.0
_LEAST_DRAWN = 200
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
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and lengths [%(default)s]")
    parser.add_argument(
        "--text-seed", type=int, metavar="N", help="of the texts [another each time, or a server's cache would answer]"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here, `-` for stdout")
    if amount:
        load = parser.add_mutually_exclusive_group()
        load.add_argument("--rate", type=float, metavar="R", help="requests a second, open loop [4; a trace's own]")
        load.add_argument("--concurrency", type=int, metavar="C", help="clients that take turns, closed loop")


def url_of(arguments: argparse.Namespace) -> str:
    """Raises UsageError for an address of the other wire's form."""
    if arguments.url is None:
        return "127.0.0.1:9000" if arguments.grpc else "http://127.0.0.1:8000"
    url = str(arguments.url)
    if arguments.grpc and "://" in url:
        raise UsageError(f"{url}: with --grpc an address is host:port, of the server's gRPC port")
    if not arguments.grpc and not url.startswith(("http://", "https://")):
        raise UsageError(f"{url}: an address is http(s)://host:port, or host:port of a gRPC server with --grpc")
    return url


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
    """What makes the requests, at any rate: a trace is read once. Raises UsageError, also for numbers and files that would
    be found to be wrong only after the load."""
    for flag, value in (("--seed", arguments.seed), ("--text-seed", arguments.text_seed)):
        if value is not None and value < 0:
            raise UsageError(f"{flag} must be at least 0, got {value}")
    for flag in ("duration_s", "timeout_s", "ttft_s", "tpot_s", "e2e_s"):
        value = getattr(arguments, flag)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{flag.replace('_', '-')} must be above 0 and finite, got {value:g}")
    _check_files(arguments)
    name, colon, parameters = arguments.workload.partition(":")
    worded = {"workload": _WORDED.get(name, name) + colon + parameters}
    return Traffic(argparse.Namespace(**vars(arguments) | worded))


def offered_by(traffic: Traffic, arguments: argparse.Namespace, rate: float | None) -> Workload:
    """The requests at this rate; the traffic's own for None. Raises UsageError."""
    concurrency = getattr(arguments, "concurrency", None)
    for flag, value in (("--concurrency", concurrency), ("--num-requests", arguments.num_requests)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} must be at least 1, got {value}")
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"--rate must be above 0 and finite, got {rate:g}")
    if concurrency is None or arguments.workload.startswith(TRACE):
        made = traffic.offered(rate, arguments.seed)
    else:
        made = _enough(traffic, arguments, concurrency)
    if arguments.arrivals == "constant":
        made = evenly(made)
    if arguments.num_requests is not None:
        made = made.take(np.arange(min(arguments.num_requests, len(made))))
    return made


def until_s(arguments: argparse.Namespace) -> float:
    """When a closed loop begins nothing more: --num-requests are sent however long it takes."""
    return float("inf") if arguments.num_requests is not None else float(arguments.duration_s)


def text_seed(arguments: argparse.Namespace) -> int:
    """Drawn once a command, and told in its result."""
    if arguments.text_seed is None:
        arguments.text_seed = secrets.randbits(32)
    return int(arguments.text_seed)


def _enough(traffic: Traffic, arguments: argparse.Namespace, concurrency: int) -> Workload:
    """For clients that take turns: --num-requests, or more than they can get through in --duration-s."""
    wanted = arguments.num_requests
    if wanted is None:
        return traffic.offered(concurrency * _MOST_PER_CLIENT_S, arguments.seed)
    # At fewer, a workload of programs with many calls each may have none.
    rate = max(wanted, _LEAST_DRAWN) / arguments.duration_s
    while len(made := traffic.offered(rate, arguments.seed)) < wanted:
        rate *= 2
    return made


def _check_files(arguments: argparse.Namespace) -> None:
    files = {flag: getattr(arguments, flag, None) for flag in ("json", "records")}
    for flag, file in files.items():
        if isinstance(file, Path) and str(file) != "-":
            check_writable(f"--{flag}", file)
    if str(files["records"]) == "-":
        raise UsageError("--records takes a file; stdout is the result's alone")
    if files["json"] is not None and files["json"] == files["records"]:
        raise UsageError(f"--json and --records both name {files['json']}; give each a file of its own")


def command_of(arguments: argparse.Namespace) -> str:
    """The command line without its API keys and passwords: results are passed on."""
    words = shlex.split(arguments.command_line)
    secret = [name for name, word in enumerate(words) if word == "--key"]
    for place in secret:
        words[place + 1 : place + 2] = ["KEY"]
    words = ["--key=KEY" if word.startswith("--key=") else without_password(word) for word in words]
    return shlex.join(words)


def without_password(url: str) -> str:
    """A URL, or anything else, without user:password@."""
    return re.sub(r"(\w://)[^/@]+@", r"\1", url)


def tell(result: dict[str, Any], table: str, out: Path | None) -> None:
    """Write a result where --json says, and print it: as JSON for `-`, else for people. A client that was the bottleneck
    is told on stderr."""
    printed = str(out) == "-"
    write(None if printed else out, result)
    print(json.dumps(result, indent=2) if printed else table)
    if result["client_was_bottleneck"]:
        late_ms = max(result["lateness_p99_ms"], result.get("client_lag_p99_ms", 0.0))
        print(
            f"burrstone: the client came up to {late_ms:.1f} ms late to what was due (p99; {MAX_LATENESS_MS:g} is allowed): "
            "this measured the client. Lower the rate, or run it on cores of its own",
            file=sys.stderr,
        )


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
