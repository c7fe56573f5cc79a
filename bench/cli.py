"""`burrstone bench`: measurements of this machine. `--json` prints one object; progress goes to stderr."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burrstone.bench.overhead import OverheadPlan, measure_overhead, table
from burrstone.serving.cli.progress import Progress


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure this machine", description="Measure this machine.")
    kinds = parser.add_subparsers(dest="bench", required=True, metavar="KIND")
    overhead = kinds.add_parser(
        "overhead",
        help="what burrstone costs over bare vLLM",
        description=(
            "Start bare vLLM and burrstone with the same engine arguments and load them in turns: time to first token "
            "at one stream, tokens per second at 8 and 32, over HTTP and gRPC. Takes about ten minutes on two cores."
        ),
    )
    defaults = OverheadPlan()
    overhead.add_argument("--rounds", type=int, default=defaults.rounds, help="interleaved rounds [%(default)s]")
    overhead.add_argument(
        "--api", choices=["chat", "completions"], default=defaults.api, help="operation that is loaded [%(default)s]"
    )
    overhead.add_argument("--json", action="store_true", help="print the result as JSON")
    overhead.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON result here")
    overhead.set_defaults(run=_run_overhead)


def _run_overhead(arguments: argparse.Namespace) -> int:
    plan = OverheadPlan(rounds=max(2, arguments.rounds), api=arguments.api)
    with Progress() as progress:
        result = measure_overhead(plan, progress.say)
    text = json.dumps(asdict(result), indent=2)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    print(text if arguments.json else table(result))
    return 0
