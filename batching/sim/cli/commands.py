"""`burrstone sim`: the scheduler's policies against a model of the engine. Flags only; what they do is loaded when it is
asked for, so that other commands need not wait for it."""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from burrstone.batching.sim.cli.flags import (
    Flags,
    at_least_zero,
    count,
    failure,
    fraction,
    knob,
    names,
    numbers,
    positive,
    seeds,
)

_DESCRIPTION = """\
What would a scheduling policy do to this traffic? The same policies that run in the engine, against a model of vLLM's
rules and of the time that a step takes. Nothing is served and no GPU is needed."""

_RUN_EXAMPLES = """\
examples:
  burrstone sim run                                         stock order against deadlines, chats beside batch work
  burrstone sim run --policy fcfs --policy 'vtc > slo' --workload flood --rate 8 --seeds 1,2,3
  burrstone sim run --rate 2,4,6,8 --report rates.html      how far does each policy go?
  burrstone sim run --workload trace:azure_llm_2023_conv.csv --rate 4 --ttft-s 1 --tpot-s 0.05
  burrstone sim run --step-model model.json --num-blocks 24999 --max-num-seqs 128     your engine, calibrated
"""

_FLEET_EXAMPLES = """\
examples:
  burrstone sim fleet --rate 100 --ttft-s 1 --tpot-s 0.05             the smallest fleet, policy by policy
  burrstone sim fleet --rate 100 --price 2.5 --accelerators-per-engine 8        and what it costs
  burrstone sim fleet --engines 1000 --accelerators-per-engine 8 --rate 3000 --duration-s 60   does it hold?
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
    for kind, add_flags, text, examples in (
        ("run", _add_run, "latencies of policies, side by side", _RUN_EXAMPLES),
        ("fleet", _add_fleet, "how many engines meet an SLO, and what they cost", _FLEET_EXAMPLES),
        ("calibrate", _add_calibrate, "fit the step model to an engine's log", _CALIBRATE_EXAMPLES),
        ("targets", _add_targets, "measure what the scheduler has to keep", _TARGETS_EXAMPLES),
    ):
        flags = Flags(
            kinds.add_parser(
                kind,
                help=text,
                usage=f"burrstone sim {kind} [--FLAG VALUE ...]" + (" STEPLOG..." if kind == "calibrate" else ""),
                description=f"{text[0].upper()}{text[1:]}.",
                epilog=examples,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
        add_flags(flags)
        flags.parser.set_defaults(run=_loaded_when_run(kind), flags=tuple(flags.names))


def _loaded_when_run(kind: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        code: int = import_module(f"{__package__}.{kind}").run(arguments)
        return code

    return run


def _add_run(flags: Flags) -> None:
    _add_policies(flags, ["fcfs", "slo"])
    _add_traffic(flags)
    flags.add(
        "--rate",
        type=numbers("requests per second, or several: 2,4,8"),
        metavar="R[,R...]",
        help="requests per second; with several, how attainment falls with the rate [4, or the trace's own]",
    )
    _add_slo(flags)
    _add_engine(flags)
    flags.add(
        "--engines",
        type=count("engines behind one router"),
        default=1,
        metavar="N",
        help="engines behind one router [%(default)s]",
    )
    flags.add(
        "--router", default="round-robin", metavar="NAME", help="router policy, with several engines [%(default)s]"
    )
    flags.add(
        "--mode",
        choices=["exact", "macro"],
        default="macro",
        help="every step, or only those that decide something; the result is the same [%(default)s]",
    )
    _add_output(flags)


def _add_fleet(flags: Flags) -> None:
    _add_policies(flags, ["fcfs", "slo"])
    flags.add("--router", action="extend", type=names, metavar="NAME", help="router policies to compare [round-robin]")
    _add_traffic(flags)
    flags.add(
        "--rate",
        type=positive("requests per second"),
        metavar="R",
        help="requests per second of the whole fleet [40, or the trace's own]",
    )
    _add_slo(flags)
    _add_engine(flags)
    flags.parser.set_defaults(mode="macro")
    fleet = flags.group("fleet")
    fleet.add(
        "--engines", type=count("engines"), metavar="N", help="simulate this fleet; without it, find the smallest one"
    )
    fleet.add(
        "--max-engines", type=count("engines"), metavar="N", default=10_000, help="largest fleet to try [%(default)s]"
    )
    fleet.add(
        "--accelerators-per-engine",
        type=count("accelerators"),
        default=1,
        metavar="N",
        help="for the cost [%(default)s]",
    )
    fleet.add(
        "--price", type=positive("money per accelerator and hour"), metavar="P", help="of an accelerator, an hour"
    )
    change = flags.group("engines that come and go (with --no-prefix-caching)")
    change.add(
        "--fail",
        action="append",
        type=failure,
        metavar="AT_S:FOR_S[:ENGINES]",
        help="so many engines [1] die at AT_S with all that they hold, and are back FOR_S later; repeat it for more",
    )
    change.add(
        "--autoscale",
        type=positive("requests that an engine should hold"),
        metavar="REQUESTS",
        help="as many engines as hold so many requests each, at most --engines [always all]",
    )
    change.add(
        "--start-s",
        type=at_least_zero("seconds until a new engine serves"),
        metavar="S",
        help="that a new engine takes to come up, with --autoscale [120]",
    )
    change.add(
        "--least-engines",
        type=count("engines"),
        metavar="N",
        help="that are always up, from the beginning on, with --autoscale [1]",
    )
    neuron = flags.group("static shapes")
    neuron.add("--neuron", action="store_true", help="also: which graphs to compile for this traffic")
    neuron.add(
        "--graphs", type=count("graphs"), metavar="N", default=7, help="how many lengths to compile for [%(default)s]"
    )
    neuron.add("--max-model-len", type=count("tokens"), metavar="N", help="the model's maximum [the longest prompt]")
    _add_output(flags)


def _add_calibrate(flags: Flags) -> None:
    flags.add("steplog", nargs="+", type=Path, metavar="STEPLOG", help="step log of one engine, JSON lines")
    flags.add("--out", type=Path, metavar="FILE", help="write the model here, for --step-model")
    flags.add("--every", type=count("steps"), default=1, metavar="N", help="use one step in N [%(default)s]")
    flags.add(
        "--half-life-steps", type=positive("steps"), metavar="N", help="a step N steps ago counts half [all alike]"
    )
    flags.add("--seed", type=count("a seed", least=0), metavar="N", default=0, help="of the intervals [%(default)s]")
    flags.add("--json", action="store_true", help="print the result as JSON")


def _add_targets(flags: Flags) -> None:
    flags.add("--only", type=count("number of a target"), action="append", metavar="N", help="this one; repeat")
    flags.add("--traces", type=Path, metavar="DIR", help="folder of trace files [environment BURRSTONE_TRACES]")
    flags.add("--json", action="store_true", help="print the rows as JSON")


def _add_policies(flags: Flags, default: list[str]) -> None:
    flags.add(
        "--policy",
        action="extend",
        type=names,
        metavar="NAME",
        help=f"engine policy, tiers with '>'; repeat it to compare [{','.join(default)}]",
    )
    flags.add("--knob", action="append", type=knob, metavar="NAME=VALUE", help="of the policies; repeat it")
    flags.parser.set_defaults(default_policies=default)


def _add_traffic(flags: Flags) -> None:
    traffic = flags.group("traffic")
    traffic.add(
        "--workload",
        default="mix",
        metavar="NAME|trace:PATH",
        help="generated traffic, NAME[:key=value,...], or a recorded one [%(default)s]; `list` tells the names",
    )
    traffic.add(
        "--duration-s", type=positive("seconds of traffic"), default=300.0, metavar="S", help="of traffic [%(default)s]"
    )
    traffic.add(
        "--seeds", "--seed", type=seeds, default=[1], metavar="N[,N...]", help="three or more give intervals [1]"
    )


def _add_slo(flags: Flags) -> None:
    slo = flags.group("SLOs, of the requests that have one, or of all where none has")
    slo.add("--ttft-s", "--ttft", type=positive("seconds"), metavar="S", help="first token after at most [1]")
    slo.add("--tpot-s", "--tpot", type=positive("seconds"), metavar="S", help="later ones, on average [0.05]")
    slo.add("--e2e-s", "--e2e", type=positive("seconds"), metavar="S", help="the last one [never]")
    slo.add("--attainment", type=fraction("share of requests"), default=0.95, metavar="A", help="goal [%(default)s]")


def _add_engine(flags: Flags) -> None:
    engine = flags.group("engine (as vLLM has it)")
    engine.add("--step-model", type=Path, metavar="FILE", help="of `sim calibrate` [an 8B model, one GPU]")
    engine.add("--scatter", action="store_true", help="steps scatter as they did when --step-model was calibrated")
    engine.add(
        "--max-num-seqs", type=count("sequences"), default=256, metavar="N", help="requests in a batch [%(default)s]"
    )
    engine.add(
        "--max-num-batched-tokens", type=count("tokens"), default=8192, metavar="N", help="in a step [%(default)s]"
    )
    engine.add("--block-size", type=count("tokens"), default=16, metavar="N", help="tokens in a KV block [%(default)s]")
    engine.add(
        "--num-blocks",
        type=count("KV blocks"),
        default=25_000,
        metavar="N",
        help="KV blocks, one less than the engine reports [%(default)s]",
    )
    engine.add(
        "--prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="find equal prefixes in the KV cache [on]",
    )


def _add_output(flags: Flags) -> None:
    flags.add("--json", action="store_true", help="print the result as JSON")
    flags.add("--report", type=Path, metavar="FILE.html", help="write a report: one file, no network needed")
