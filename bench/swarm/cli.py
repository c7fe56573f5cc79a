"""`burrstone bench locust`: start locust with our locustfile. Locust patches the standard library, so it gets a process of its
own, which takes this one's place."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from burrstone.bench.load.flags import url_of
from burrstone.bench.swarm.flags import load_flags


def add_parser(kinds: Any) -> None:
    locust = kinds.add_parser(
        "locust",
        help="load a server from locust's web page, or distributed",
        description=(
            "Start locust with the load commands' workloads and an LLM's figures: TTFT, ITL, E2E, tokens and goodput by tenant. "
            "Without --headless it serves its page on port 8089. What follows -- is locust's own: "
            "`burrstone bench locust --rate 4 -- --headless --csv out`."
        ),
    )
    locust.add_argument("--url", help="http(s)://host:port, or host:port with --grpc [http://127.0.0.1:8000]")
    for names, terms in load_flags():
        locust.add_argument(*names, **terms)
    locust.add_argument("--users", type=int, metavar="N", help="clients of --mode closed [1]")
    locust.add_argument("--processes", type=int, metavar="N", help="send from so many processes [this one]")
    locust.add_argument("--headless", action="store_true", help="no page; ends when all is answered")
    locust.add_argument("locust", nargs="*", metavar="-- LOCUST", help="flags of locust's own")
    locust.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    command = command_of(arguments)
    os.execv(command[0], command)


def command_of(arguments: argparse.Namespace) -> list[str]:
    """python -m locust with our file and the flags that were given."""
    command = [sys.executable, "-m", "locust", "-f", str(_locustfile())]
    command += ["--host", url_of(arguments)]
    for names, terms in load_flags():
        value = getattr(arguments, names[0].removeprefix("--").replace("-", "_"))
        command += _words(names[0], value, terms.get("default"))
    command += _words("--users", arguments.users, None) + _words("--processes", arguments.processes, None)
    command += ["--headless"] if arguments.headless else []
    return [*command, *arguments.locust]


def _words(name: str, value: Any, default: Any) -> list[str]:
    if value == default or value is False:
        return []
    if value is True:
        return [name]
    return [word for one in (value if isinstance(value, list) else [value]) for word in (name, str(one))]


def _locustfile() -> Path:
    # Found, not imported: its import would import locust.
    found = importlib.util.find_spec("burrstone.bench.locustfile")
    if found is None or found.origin is None:
        raise FileNotFoundError("burrstone.bench.locustfile")
    return Path(found.origin)
