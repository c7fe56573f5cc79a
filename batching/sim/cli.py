"""`burrstone sim`: the scheduler's policies against a model of the engine. Flags only; what they do is loaded when it is
asked for, so that other commands need not wait for it."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from burrstone.batching.sim.cli_flags import at_least_zero, count, fraction, knob, names, numbers, positive, seeds

_DESCRIPTION = """\
What would a scheduling policy do to this traffic? The same policies that run in the engine, against a model of vLLM's
rules and of the time that a step takes. Nothing is served and no GPU is needed."""

_RUN_EXAMPLES = """\
examples:
  burrstone sim run                                         stock order against deadlines, on generated chat traffic
  burrstone sim run --policy fcfs --policy 'vtc > slo' --workload flood --rate 8 --seeds 1,2,3
  burrstone sim run --rate 2,4,6,8 --report rates.html      how far does each policy go?
  burrstone sim run --workload trace:azure_llm_2023_conv.csv --rate 4 --ttft-s 1 --tpot-s 0.05
  burrstone sim run --step-model model.json --num-blocks 24999 --max-num-seqs 128     your engine, calibrated
"""

_FLEET_EXAMPLES = """\
examples:
  burrstone sim fleet --rate 100 --ttft-s 1 --tpot-s 0.05             the smallest fleet, policy by policy
  burrstone sim fleet --rate 100 --price 2.5 --accelerators-per-engine 8        and what it costs
  burrstone sim fleet --engines 10000 --accelerators-per-engine 8 --rate 30000  this fleet: does it hold?
  burrstone sim fleet --rate 100 --fail-engines 4 --at-s 300 --for-s 120        when a rack goes away
  burrstone sim fleet --neuron --workload trace:azure_llm_2023_conv.csv         which graphs to compile
"""

_CALIBRATE_EXAMPLES = """\
example:
  burrstone sim calibrate steps.jsonl --out model.json && burrstone sim run --step-model model.json
Record the log under a load that varies: light and heavy, short prompts and long ones.
"""

_TARGETS_EXAMPLES = """\
examples:
  burrstone sim targets --traces traces          all of them; exit code 1 if one is missed
  burrstone sim targets --only 6 --json
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("sim", help="try scheduling policies without an engine", description=_DESCRIPTION)
    kinds = parser.add_subparsers(dest="sim", required=True, metavar="KIND")
    _add_run(_kind(kinds, "run", "latencies of policies, side by side", _RUN_EXAMPLES))
    _add_fleet(_kind(kinds, "fleet", "how many engines meet an SLO, and what they cost", _FLEET_EXAMPLES))
    _add_calibrate(_kind(kinds, "calibrate", "fit the step model to an engine's log", _CALIBRATE_EXAMPLES))
    _add_targets(_kind(kinds, "targets", "measure what the scheduler has to keep", _TARGETS_EXAMPLES))


def _kind(kinds: Any, name: str, text: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def run(arguments: argparse.Namespace) -> int:
        code: int = import_module(f"{__package__}.cli_{name}").run(arguments)
        return code

    parser.set_defaults(run=run)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_policies(parser, ["fcfs", "slo"])
    _add_traffic(parser)
    parser.add_argument(
        "--rate",
        type=numbers("requests per second, or several: 2,4,8"),
        metavar="R[,R...]",
        help="requests per second; with several, how attainment falls with the rate [the workload's own, or 4]",
    )
    _add_slo(parser)
    _add_engine(parser)
    parser.add_argument(
        "--engines", type=count("engines behind one router"), default=1, help="engines behind one router [%(default)s]"
    )
    parser.add_argument("--router", default="least-load", help="router policy, with several engines [%(default)s]")
    parser.add_argument(
        "--mode",
        choices=["exact", "macro"],
        default="macro",
        help="every step, or only those that decide something; the result is the same [%(default)s]",
    )
    _add_output(parser)


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    _add_policies(parser, ["fcfs", "slo"])
    parser.add_argument(
        "--router", action="extend", type=names, metavar="NAME", help="router policies to compare [least-load]"
    )
    _add_traffic(parser)
    parser.add_argument(
        "--rate", type=positive("requests per second"), metavar="R", help="requests per second of the whole fleet [100]"
    )
    _add_slo(parser)
    _add_engine(parser)
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument(
        "--engines", type=count("engines"), metavar="N", help="simulate this fleet; without it, find the smallest one"
    )
    fleet.add_argument(
        "--max-engines", type=count("engines"), default=10_000, help="largest fleet to try [%(default)s]"
    )
    fleet.add_argument(
        "--accelerators-per-engine",
        type=count("accelerators"),
        default=1,
        metavar="N",
        help="for the cost [%(default)s]",
    )
    fleet.add_argument(
        "--price", type=positive("money per accelerator and hour"), metavar="P", help="of an accelerator, an hour"
    )
    _add_trouble(parser)
    neuron = parser.add_argument_group("static shapes")
    neuron.add_argument("--neuron", action="store_true", help="also: which graphs to compile for this traffic")
    neuron.add_argument(
        "--graphs", type=count("graphs"), default=7, help="how many lengths to compile for [%(default)s]"
    )
    _add_output(parser)


def _add_trouble(parser: argparse.ArgumentParser) -> None:
    trouble = parser.add_argument_group("failures and autoscaling")
    trouble.add_argument("--fail-engines", type=count("engines that fail"), metavar="N", help="so many engines fail")
    trouble.add_argument("--at-s", type=at_least_zero("seconds"), metavar="T", help="then [a third of the duration]")
    trouble.add_argument("--for-s", type=positive("seconds"), metavar="D", help="for so long [60]")
    trouble.add_argument("--autoscale", action="store_true", help="engines come and go with the load")
    trouble.add_argument("--min-engines", type=count("engines"), default=1, help="never fewer [%(default)s]")
    trouble.add_argument(
        "--start-s", type=positive("seconds"), default=60.0, help="until a new one serves [%(default)s]"
    )


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("steplog", nargs="+", type=Path, metavar="STEPLOG", help="step log of one engine, JSON lines")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the model here, for --step-model")
    parser.add_argument("--every", type=count("steps"), default=1, metavar="N", help="use one step in N [%(default)s]")
    parser.add_argument(
        "--half-life-steps", type=positive("steps"), metavar="N", help="a step N steps ago counts half [all alike]"
    )
    parser.add_argument("--seed", type=count("a seed", least=0), default=0, help="of the intervals [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", type=count("number of a target"), action="append", metavar="N", help="this one; repeat"
    )
    parser.add_argument(
        "--traces", type=Path, metavar="DIR", help="folder of trace files [environment BURRSTONE_TRACES]"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def _add_policies(parser: argparse.ArgumentParser, default: list[str]) -> None:
    parser.add_argument(
        "--policy",
        action="extend",
        type=names,
        metavar="NAME",
        help=f"engine policy, tiers with '>'; repeat it to compare [{','.join(default)}]",
    )
    parser.add_argument("--knob", action="append", type=knob, metavar="NAME=VALUE", help="of the policies; repeat it")
    parser.set_defaults(default_policies=default)


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument(
        "--workload",
        default="chat",
        metavar="NAME|trace:PATH",
        help="generated traffic, NAME[:key=value,...], or a recorded one [%(default)s]; `list` tells the names",
    )
    traffic.add_argument(
        "--duration-s", type=positive("seconds of traffic"), default=300.0, metavar="S", help="of traffic [%(default)s]"
    )
    traffic.add_argument(
        "--seeds", "--seed", type=seeds, default=[1], metavar="N[,N...]", help="three or more give intervals [1]"
    )


def _add_slo(parser: argparse.ArgumentParser) -> None:
    slo = parser.add_argument_group("SLOs, for requests whose workload names none")
    slo.add_argument("--ttft-s", "--ttft", type=positive("seconds"), metavar="S", help="first token after at most [2]")
    slo.add_argument("--tpot-s", "--tpot", type=positive("seconds"), metavar="S", help="later ones, on average [0.1]")
    slo.add_argument("--e2e-s", "--e2e", type=positive("seconds"), metavar="S", help="the last one [never]")
    slo.add_argument(
        "--attainment", type=fraction("share of requests"), default=0.95, metavar="A", help="goal [%(default)s]"
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine (as vLLM has it)")
    engine.add_argument("--step-model", type=Path, metavar="FILE", help="of `sim calibrate` [an 8B model, one GPU]")
    engine.add_argument("--max-num-seqs", type=count("sequences"), default=256, metavar="N", help="[%(default)s]")
    engine.add_argument(
        "--max-num-batched-tokens", type=count("tokens of a step"), default=8192, metavar="N", help="[%(default)s]"
    )
    engine.add_argument("--block-size", type=count("tokens"), default=16, metavar="N", help="of KV [%(default)s]")
    engine.add_argument(
        "--num-blocks",
        type=count("KV blocks"),
        default=25_000,
        metavar="N",
        help="KV blocks, one less than the engine reports [%(default)s]",
    )
    engine.add_argument("--prefix-caching", action=argparse.BooleanOptionalAction, default=True, help="[on]")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report: one file, no network needed")
