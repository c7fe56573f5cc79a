"""The live targets: what only a real engine can show. It runs in a process of its own, in a replica's environment.

`python -m burrstone.bench.live_targets NUMBERS DECISIONS ROUNDS` is that process: rows as JSON to stdout, the rest to stderr.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.targets import Row
from burrstone.serving.config import ServeConfig
from burrstone.serving.hardware import detect
from burrstone.serving.launch import engine_environment

NUMBERS = (1, 10)
_NEWS, _ROWS = "burrstone-bench: ", "burrstone-rows: "


@dataclass(frozen=True, slots=True)
class LivePlan:
    """How much is measured. `numbers`: which targets."""

    numbers: tuple[int, ...] = NUMBERS
    decisions: int = 10_000
    rounds: int = 4

    def __post_init__(self) -> None:
        for number in self.numbers:
            if number not in NUMBERS:
                raise UsageError(f"--only {number}: no such live target; there are {', '.join(map(str, NUMBERS))}")


def measure(plan: LivePlan, say: Callable[[str], None]) -> dict[str, Row]:
    """The rows by name, `<number>-<name>`. Raises RuntimeError, with the end of its output, when the engine fails."""
    command = [sys.executable, "-m", "burrstone.bench.live_targets", ",".join(map(str, plan.numbers))]
    command += [str(plan.decisions), str(plan.rounds)]
    environment = os.environ | _environment()
    output: list[str] = []
    rows: dict[str, Row] | None = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            output.append(line)
            if line.startswith(_NEWS):
                say(line.removeprefix(_NEWS).strip())
            elif line.startswith(_ROWS):
                rows = json.loads(line.removeprefix(_ROWS))
    if process.returncode != 0 or rows is None:
        raise RuntimeError("the engine of the live targets failed:\n" + "".join(output[-40:]))
    return rows


def _environment() -> Mapping[str, str]:
    # One process: the engine's steps are driven from here, and its scheduler is at hand.
    return {**engine_environment(ServeConfig(), detect()), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def _say(text: str) -> None:
    print(_NEWS + text, flush=True)


def _main(arguments: Sequence[str]) -> None:
    from burrstone.bench import live_loads
    from burrstone.bench.live_engine import LiveEngine
    from burrstone.serving.engine.models import resolve_model

    numbers, decisions, rounds = arguments
    config = ServeConfig()
    model = resolve_model(config.model, config.cache_dir.expanduser())
    _say("starting the engine")
    engine = LiveEngine(model.path, live_loads.ENGINE, live_loads.NUM_BLOCKS)
    rows: dict[str, Row] = {}
    if "1" in numbers.split(","):
        rows |= live_loads.same_code(engine, int(decisions), _say)
    if "10" in numbers.split(","):
        rows |= live_loads.cost(engine, int(rounds), _say)
    print(_ROWS + json.dumps(rows), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
