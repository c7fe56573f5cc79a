"""The live targets: what only a real engine can show. It runs in a process of its own, in a replica's environment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.targets.judge import Row
from burrstone.bench.live_process import NEWS, ROWS
from burrstone.serving.config import ServeConfig
from burrstone.serving.hardware import detect
from burrstone.serving.launch import engine_environment

# Targets by the KV blocks that their engine has: few, so that requests are preempted and caches contended, or plenty.
_BLOCKS = {160: (1, 8, 10), 1000: (2, 5, 6)}
NUMBERS = tuple(sorted(number for numbers in _BLOCKS.values() for number in numbers))


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
    """The rows by name, `<number>-<name>`. Raises RuntimeError, with the end of its output, when an engine fails."""
    rows: dict[str, Row] = {}
    for num_blocks, group in _BLOCKS.items():
        numbers = [number for number in plan.numbers if number in group]
        if numbers:
            rows |= _measure_on_one_engine(plan, numbers, num_blocks, say)
    return rows


def _measure_on_one_engine(
    plan: LivePlan, numbers: list[int], num_blocks: int, say: Callable[[str], None]
) -> dict[str, Row]:
    command = [sys.executable, "-m", "burrstone.bench.live_process", ",".join(map(str, numbers))]
    command += [str(num_blocks), str(plan.decisions), str(plan.rounds)]
    environment = os.environ | _environment()
    output: list[str] = []
    rows: dict[str, Row] | None = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            output.append(line)
            if line.startswith(NEWS):
                say(line.removeprefix(NEWS).strip())
            elif line.startswith(ROWS):
                rows = json.loads(line.removeprefix(ROWS))
    if process.returncode != 0 or rows is None:
        raise RuntimeError("the engine of the live targets failed:\n" + "".join(output[-40:]))
    return rows


def _environment() -> Mapping[str, str]:
    # One process: the engine's steps are driven from here, and its scheduler is at hand.
    return {**engine_environment(ServeConfig(), detect()), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
