"""`burrstone bench`: measurements of this machine. `--json` prints one object; progress goes to stderr."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burrstone.batching.sim.targets.judge import met
from burrstone.bench.live_targets import NUMBERS, LivePlan, measure
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
    _add_targets(kinds)


def _add_targets(kinds: Any) -> None:
    targets = kinds.add_parser(
        "targets",
        help="what the scheduler must show on a live engine",
        description=(
            "Start an engine in a process of its own and measure the live targets: 1, the simulator decides as the "
            "engine did; 2, it foretells latencies; 5, capacity under SLOs; 6, fairness under a flood; 8, agents' job "
            "time; 10, what the policy costs. Takes about 45 minutes on two cores."
        ),
    )
    defaults = LivePlan()
    targets.add_argument("--only", type=int, nargs="+", metavar="N", help="these targets [all of them]")
    targets.add_argument("--decisions", type=int, default=defaults.decisions, help="of target 1 [%(default)s]")
    targets.add_argument("--rounds", type=int, default=defaults.rounds, help="of target 10 [%(default)s]")
    targets.add_argument("--json", action="store_true", help="print the rows as JSON")
    targets.set_defaults(run=_run_targets)


def _run_targets(arguments: argparse.Namespace) -> int:
    plan = LivePlan(tuple(arguments.only or NUMBERS), max(1, arguments.decisions), max(1, arguments.rounds))
    with Progress() as progress:
        rows = measure(plan, progress.say)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        for name, row in rows.items():
            print(f"{name}: {row['value']:g} (goal {row['goal']}) {'met' if row['ok'] else 'MISSED'}")
    return 0 if met(rows) else 1


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
