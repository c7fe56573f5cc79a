"""`burrstone bench compare A B`: the same workload on two servers in turns, A B B A, so that a machine's moods hit both alike.

A is measured twice a round; how far it is from itself is the noise. A ratio is of a round, B over A; its interval is a
bootstrap over rounds.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli.traffic import Traffic
from burrstone.bench.load.flags import (
    add_load_flags,
    command_of,
    offered_by,
    tell,
    terms_of,
    text_seed,
    traffic_of,
    until_s,
    without_password,
)
from burrstone.bench.load.offer import Plan, offer_whole
from burrstone.bench.machine import machine
from burrstone.bench.peers.models import Models
from burrstone.bench.peers.servers import all_running
from burrstone.bench.peers.table import PEERS, check
from burrstone.serving.cli.progress import Progress
from burrstone.serving.config import EMBEDDED_MODEL

_TURNS = ("A", "B", "B", "A")
# Figure -> whether more is better.
FIGURES = {
    "output_throughput": True,
    "request_throughput": True,
    "goodput_rps": True,
    "median_ttft_ms": False,
    "p99_ttft_ms": False,
    "median_tpot_ms": False,
}
_RESAMPLES = 10_000
# With fewer, the interval holds the median less often than 95 times of 100.
_SURE_ROUNDS = 6
_NO_RATIO: dict[str, Any] = {"ratio": None, "low": None, "high": None, "noise": None, "rounds": []}
_GRPC = "grpc://"


@dataclass(frozen=True, slots=True)
class Ratio:
    """B over A, with its 95 % interval; noise: how far A was from itself within a round, the median over rounds."""

    ratio: float
    low: float
    high: float
    noise: float
    rounds: list[float]


def ratio_of(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]], seed: int = 0) -> Ratio:
    """first, second: A's and B's two values of each round."""
    rounds = [sum(b) / sum(a) for a, b in zip(first, second, strict=True)]
    drawn = np.random.default_rng(seed).choice(rounds, (_RESAMPLES, len(rounds)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    noise = statistics.median(abs(one - two) / max(one, two) for one, two in first)
    return Ratio(statistics.median(rounds), float(low), float(high), noise, rounds)


def add_parser(kinds: Any) -> None:
    compare = kinds.add_parser(
        "compare",
        help="two servers under the same load, in turns",
        description=(
            "Offer the same workload to A and B in turns (A B B A in each round) and give B over A with a bootstrap interval, "
            "beside how far A is from itself. Exit code 1 when --at-least is not surely met, or the client was the bottleneck."
        ),
    )
    compare.add_argument(
        "servers",
        nargs=2,
        metavar="SERVER",
        help=f"A and B: http(s)://host:port, grpc://host:port, or one that is started for it: {', '.join(PEERS)}",
    )
    add_load_flags(compare, url=False)
    compare.add_argument("--rounds", type=int, default=_SURE_ROUNDS, metavar="N", help="[%(default)s]")
    compare.add_argument(
        "--at-least", type=float, metavar="X", help="B's output tokens/s over A's must surely reach this"
    )
    compare.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    least = 2 if arguments.at_least is None else _SURE_ROUNDS
    if arguments.rounds < least:
        why = "" if arguments.at_least is None else ", for an interval of 95 %, which --at-least needs"
        raise UsageError(f"--rounds must be at least {least}{why}; got {arguments.rounds}")
    if arguments.at_least is not None and not arguments.at_least > 0:
        raise UsageError(f"--at-least must be above 0, got {arguments.at_least:g}")
    for server in arguments.servers:
        if "://" not in server and server not in PEERS:
            raise UsageError(
                f"{server}: neither http(s)://host:port nor grpc://host:port, and no server that can be started has that "
                f"name; there are {', '.join(PEERS)}"
            )
    traffic = traffic_of(arguments)
    runs: dict[str, list[dict[str, Any]]] = {"A": [], "B": []}
    with Progress() as progress, _reached(arguments.servers, progress.say) as urls:
        plans = dict(zip("AB", (_plan(arguments, traffic, url) for url in urls), strict=True))
        for number in range(arguments.rounds):
            for name in _TURNS:
                progress.say(f"round {number + 1} of {arguments.rounds}: {name}")
                runs[name].append(_once(plans[name], seed=1 + sum(map(len, runs.values()))))
    result = compared(runs) | {
        "setting": machine()
        | {
            "servers": [without_password(server) for server in arguments.servers],
            "workload": arguments.workload,
            "command": command_of(arguments),
        }
    }
    tell(result, table(result), arguments.json)
    return 0 if passes(result, arguments.at_least) else 1


@contextlib.contextmanager
def _reached(servers: Sequence[str], say: Callable[[str], None]) -> Iterator[list[str]]:
    """Where the servers are; those named as peers are started, and stopped at the end."""
    wanted = [server for server in servers if server in PEERS]
    check(wanted)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burrstone-compare-")))
        models = Models(EMBEDDED_MODEL, folder, say)
        launches = {name: PEERS[name].launch(models) for name in wanted}
        stack.enter_context(all_running(launches, say))
        yield [launches[server].url if server in launches else server for server in servers]


def _plan(arguments: argparse.Namespace, traffic: Traffic, server: str) -> Plan:
    arguments.grpc, arguments.url = server.startswith(_GRPC), server.removeprefix(_GRPC)
    workload, terms = offered_by(traffic, arguments, arguments.rate), terms_of(arguments, traffic.tenant_names)
    load = arguments.concurrency, until_s(arguments), text_seed(arguments)
    return Plan(workload, terms, arguments.url, arguments.grpc, *load)


def _once(plan: Plan, seed: int) -> dict[str, Any]:
    """Raises UsageError for a run in which nothing was answered."""
    offered = offer_whole(replace(plan, seed=plan.seed + seed))
    found = offered.summary()
    if not found["completed"]:
        raise UsageError(f"{plan.url} answered nothing: {next(iter(found['errors']))}")
    wanted = plan.workload.output_tokens
    found["other_lengths"] = sum(
        1
        for record in offered.records
        if record.ok and not plan.terms.stop_early and record.output_tokens != wanted[record.number]
    )
    return found


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Figure -> Ratio as a dictionary, for those that both servers have in every run; no ratio to nothing at all."""
    found: dict[str, Any] = {}
    for figure in FIGURES:
        values = {name: [run[figure] for run in those] for name, those in runs.items()}
        if None not in [value for those in values.values() for value in those]:
            pairs = {name: list(zip(those[::2], those[1::2], strict=True)) for name, those in values.items()}
            nothing = any(not sum(pair) for pair in pairs["A"])
            ratio = _NO_RATIO if nothing else asdict(ratio_of(pairs["A"], pairs["B"]))
            found[figure] = ratio | {name: statistics.median(those) for name, those in values.items()}
    every = [run for those in runs.values() for run in those]
    rounds = len(runs["A"]) // 2
    return found | {
        "rounds": rounds,
        # The interval of a median of few rounds is from the least to the most, which holds it so often.
        "confidence": min(0.95, 1.0 - 0.5 ** (rounds - 1)),
        "failed": {name: sum(run["failed"] for run in those) for name, those in runs.items()},
        "other_lengths": {name: sum(run["other_lengths"] for run in those) for name, those in runs.items()},
        "lateness_p99_ms": max(run["lateness_p99_ms"] for run in every),
        "client_lag_p99_ms": max(run["client_lag_p99_ms"] for run in every),
        "client_was_bottleneck": any(run["client_was_bottleneck"] for run in every),
    }


def passes(result: dict[str, Any], at_least: float | None) -> bool:
    """Whether the client kept up and B surely reaches its share of A's tokens/s, with every answer whole."""
    if result["client_was_bottleneck"]:
        return False
    low = result["output_throughput"]["low"]
    whole = not any(result[name]["B"] for name in ("failed", "other_lengths"))
    return at_least is None or (whole and low is not None and low >= at_least)


def table(result: dict[str, Any]) -> str:
    """For people."""
    interval = f"{result['confidence']:.0%} interval"
    lines = [f"{'':20}{'A':>12}{'B':>12}{'B / A':>9}{interval:>20}{'A / A noise':>13}"]
    for figure in FIGURES:
        if figure in result:
            row = result[figure]
            line = f"{figure:20}{row['A']:12.2f}{row['B']:12.2f}"
            if row["ratio"] is not None:
                interval = f"{row['low']:.3f} to {row['high']:.3f}"
                line += f"{row['ratio']:9.3f}{interval:>20}{row['noise']:12.1%}"
            lines.append(line)
    for name, told in (("failed", "failed requests"), ("other_lengths", "answers of another length than asked for")):
        if any(result[name].values()):
            lines.append(f"{told}: A {result[name]['A']}, B {result[name]['B']}")
    return "\n".join(lines)
