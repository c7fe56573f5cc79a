"""`burrstone bench peers`: this stack beside bare vLLM, ray.serve.llm and llama.cpp on this machine."""

import argparse
import json
from pathlib import Path
from typing import Any

from burrstone.batching.sim.targets.judge import met
from burrstone.bench.peers.side_by_side import PeersPlan, measure_peers, table
from burrstone.bench.peers.table import PEERS, check
from burrstone.bench.rows import write
from burrstone.serving.cli.progress import Progress


def add_parser(kinds: Any) -> None:
    peers = kinds.add_parser(
        "peers",
        help="burrstone beside bare vLLM, ray.serve.llm and llama.cpp",
        description=(
            "Start each server alone, load it with 1, 4, 16 and 32 streams, stop it: the same model, the same engine "
            "arguments, on this machine. Takes about fifteen minutes on two cores. Exit code 1 where a goal is missed."
        ),
        epilog="The peers: "
        + "; ".join(f"{name}: {peer.text} ({peer.precision})" for name, peer in PEERS.items())
        + ".",
    )
    defaults = PeersPlan()
    peers.add_argument("--only", nargs="+", metavar="PEER", help="these [all that are on this machine]")
    peers.add_argument("--rounds", type=int, default=defaults.rounds, metavar="N", help="[%(default)s]")
    peers.add_argument("--model", default=defaults.model, help="folder or hub id [%(default)s, embedded]")
    peers.add_argument("--gguf", type=Path, metavar="FILE", help="llama.cpp's file, where --model is another model")
    peers.add_argument("--json", action="store_true", help="print the result as JSON")
    peers.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON result here")
    peers.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check(arguments.only or ())
    plan = PeersPlan(arguments.only or tuple(PEERS), max(1, arguments.rounds), arguments.model, arguments.gguf)
    with Progress() as progress:
        result = measure_peers(plan, progress.say)
    write(arguments.out, result)
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    return 0 if met(result["ratios"]) else 1
