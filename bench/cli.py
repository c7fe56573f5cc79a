"""`burrstone bench`: measurements of this machine. `--json` prints one object; progress goes to stderr."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burrstone.bench.features import measure_features
from burrstone.bench.int8 import Int8Plan, measure_int8
from burrstone.bench.live_targets import NUMBERS, LivePlan, measure
from burrstone.bench.load import cli as load
from burrstone.bench.load import compare, slo, traces
from burrstone.bench.overhead import OverheadPlan, measure_overhead, table
from burrstone.bench.peers import cli as peers
from burrstone.bench.report import cli as report
from burrstone.bench.rows import tell_rows, write
from burrstone.bench.swarm import cli as swarm
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
    load.add_parser(kinds)
    slo.add_parser(kinds)
    compare.add_parser(kinds)
    peers.add_parser(kinds)
    swarm.add_parser(kinds)
    report.add_parser(kinds)
    traces.add_parser(kinds)
    _add_features(kinds)
    _add_targets(kinds)
    _add_int8(kinds)


def _add_int8(kinds: Any) -> None:
    int8 = kinds.add_parser(
        "int8",
        help="how much faster an INT8 checkpoint is",
        description=(
            "Serve a model as bfloat16 and as W8A8 INT8 and load both in turns, with 1 and 32 streams. Takes five to ten "
            "minutes on two cores with a small model. Exit code 1 where a goal is missed."
        ),
    )
    defaults = Int8Plan()
    int8.add_argument("--rounds", type=int, default=defaults.rounds, help="interleaved rounds [%(default)s]")
    int8.add_argument("--model", default=defaults.model, help="folder or hub id [%(default)s, embedded]")
    int8.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="an INT8 checkpoint of it [one is made]")
    int8.add_argument("--quantize-lm-head", action="store_true", help="make it with an INT8 output head")
    int8.add_argument("--json", action="store_true", help="print the rows as JSON")
    int8.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON result here")
    int8.set_defaults(run=_run_int8)


def _run_int8(arguments: argparse.Namespace) -> int:
    plan = Int8Plan(
        model=arguments.model,
        rounds=max(2, arguments.rounds),
        checkpoint=arguments.checkpoint,
        quantize_lm_head=arguments.quantize_lm_head,
    )
    with Progress() as progress:
        rows = measure_int8(plan, progress.say)
    return tell_rows(rows, arguments.out, as_json=arguments.json)


def _add_features(kinds: Any) -> None:
    features = kinds.add_parser(
        "features",
        help="what prefix caching and n-gram speculation bring",
        description=(
            "Serve the embedded model plainly, without prefix caching, and with n-gram speculation, and load the three in "
            "turns: questions about one long text, and edits that copy. Takes six to nine minutes on two cores. Exit code 1 "
            "where a goal is missed."
        ),
    )
    features.add_argument("--rounds", type=int, default=2, help="interleaved rounds [%(default)s]")
    features.add_argument("--json", action="store_true", help="print the rows as JSON")
    features.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON result here")
    features.set_defaults(run=_run_features)


def _run_features(arguments: argparse.Namespace) -> int:
    with Progress() as progress:
        rows = measure_features(max(1, arguments.rounds), progress.say)
    return tell_rows(rows, arguments.out, as_json=arguments.json)


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
    return tell_rows(rows, None, as_json=arguments.json)


def _run_overhead(arguments: argparse.Namespace) -> int:
    plan = OverheadPlan(rounds=max(2, arguments.rounds), api=arguments.api)
    with Progress() as progress:
        result = measure_overhead(plan, progress.say)
    write(arguments.out, asdict(result))
    print(json.dumps(asdict(result), indent=2) if arguments.json else table(result))
    return 0
