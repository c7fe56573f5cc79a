"""`make bench-oracle`: our load generator beside `vllm bench serve`, in turns on the same servers, and how late it sends.

First a server that replays tokens, whose times are known: there the two must agree. Then the embedded model, one request
at a time, where the machine's moods are larger than what is looked for, so that how far each tool is from itself between
turns stands beside it. Last, 50 requests a second. About ten minutes on two cores. docs/benchmarks.md has the figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burrstone.bench.machine import machine
from burrstone.bench.peers.servers import running
from burrstone.bench.peers.table import MODEL, burrstone
from burrstone.bench.rows import tell_rows
from burrstone.serving.config import EMBEDDED_MODEL, ServeConfig
from burrstone.serving.engine.models import resolve_model

THEIR_SIDE = Path(__file__).with_name("their_side.py")
INPUT_TOKENS, OUTPUT_TOKENS = 64, 16
AGREES_WITHIN = 0.03
RATES_PER_S = (10.0, 50.0)
LATENESS_GOAL_MS, LATENESS_S = 5.0, 30.0
_STEP_MS = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """How both are told to load a server."""

    requests: int
    ours: Sequence[str]
    theirs: Sequence[str]


OPEN = Load(100, ["--rate", "5"], ["--request-rate", "5"])
ONE_BY_ONE = Load(40, ["--concurrency", "1"], ["--max-concurrency", "1"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each tool on each server [%(default)s]")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="burrstone-oracle-") as scratch:
        rows = _measure(Path(scratch), max(2, arguments.turns))
    return tell_rows(rows | {"setting": machine() | {"turns": arguments.turns}}, arguments.out, as_json=arguments.json)


def _measure(folder: Path, turns: int) -> dict[str, Any]:
    script = folder / "script.yaml"
    script.write_text(f"delay_ms: {_STEP_MS:g}\n")
    scripted = burrstone(EMBEDDED_MODEL, "--engine.kind", "scripted", "--engine.script", str(script))
    live = burrstone(EMBEDDED_MODEL)
    with running("the scripted engine", scripted, folder / "scripted.log") as url:
        rows = _side_by_side("scripted", OPEN, url, folder, turns)
        rows |= {f"lateness p99 at {rate:g} requests/s": _lateness(url, rate, folder) for rate in RATES_PER_S}
    with running("the embedded model", live, folder / "live.log") as url:
        return rows | _side_by_side("live", ONE_BY_ONE, url, folder, turns)


def _side_by_side(server: str, load: Load, url: str, folder: Path, turns: int) -> dict[str, Any]:
    """Rows of our figures over theirs, by medians over the turns. In every second turn theirs goes first."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for turn in range(turns):
        for side in ("ours", "theirs")[:: -1 if turn % 2 else 1]:
            print(f"{server}: turn {turn + 1} of {turns}, {side}", file=sys.stderr, flush=True)
            found[side].append(_ours(url, load, folder) if side == "ours" else _theirs(url, load, folder, turn))
    rows = {}
    for figure in ("median_ttft_ms", "median_itl_ms"):
        of = {side: [run[figure] for run in runs] for side, runs in found.items()}
        ratio = statistics.median(of["ours"]) / statistics.median(of["theirs"])
        rows[f"{server}: {figure}, ours / theirs"] = {
            "value": round(ratio, 4),
            "goal": f"within {100 * AGREES_WITHIN:g} % of 1",
            "ok": abs(ratio - 1) <= AGREES_WITHIN,
            **{side: [round(value, 2) for value in values] for side, values in of.items()},
            "noise": round(statistics.median(max(values) / min(values) - 1 for values in of.values()), 3),
        }
    return rows


def _ours(url: str, load: Load, folder: Path) -> dict[str, Any]:
    workload = f"fixed:input={INPUT_TOKENS},output={OUTPUT_TOKENS}"
    flags = ["--workload", workload, "--num-requests", str(load.requests), "--duration-s", "3600", *load.ours]
    return _run_ours(url, flags, folder)


def _lateness(url: str, rate: float, folder: Path) -> dict[str, Any]:
    flags = ["--workload", f"fixed:input={INPUT_TOKENS},output={OUTPUT_TOKENS}"]
    late_ms = _run_ours(url, [*flags, "--rate", str(rate), "--duration-s", str(LATENESS_S)], folder)["lateness_p99_ms"]
    return {"value": round(late_ms, 3), "goal": f"<= {LATENESS_GOAL_MS:g} ms", "ok": late_ms <= LATENESS_GOAL_MS}


def _run_ours(url: str, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """Exit code 1 says that the client was late, which on a server that takes both cores it is; the result is there."""
    out = folder / "ours.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "burrstone.serving.cli.main", "bench", "run", "--url", url, "--api", "completions"]
    subprocess.run([*command, *flags, "--json", str(out)], stdout=subprocess.DEVNULL, check=False)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _theirs(url: str, load: Load, folder: Path, seed: int) -> dict[str, Any]:
    out = folder / "theirs.json"
    model = resolve_model(EMBEDDED_MODEL, ServeConfig().cache_dir.expanduser()).path
    command = [sys.executable, str(THEIR_SIDE), "--backend", "openai", "--base-url", url, "--model", model]
    command += ["--served-model-name", MODEL, "--dataset-name", "random", "--random-input-len", str(INPUT_TOKENS)]
    # Another seed each turn: a prompt that the server has met is answered from its cache.
    command += ["--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos", "--seed", str(1000 + seed)]
    command += ["--num-prompts", str(load.requests), "--save-result", "--result-filename", str(out), *load.theirs]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


if __name__ == "__main__":
    sys.exit(main())
