"""What INT8 brings on this machine: the same model served as bfloat16 and as W8A8, loaded in turns.

bfloat16 is loaded twice in every round; how far it is from itself is the noise. How a checkpoint was rounded does not
change its speed, so it is made by the quickest method unless one is given.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burrstone.batching.errors import UsageError
from burrstone.bench.machine import machine
from burrstone.bench.peers.models import Models
from burrstone.bench.peers.servers import all_running
from burrstone.bench.peers.table import burrstone
from burrstone.bench.stream_client import HttpClient
from burrstone.bench.stream_load import Load, Prompts, throughput, turns
from burrstone.serving.config import ServeConfig
from burrstone.serving.engine.models import model_config

# Streams -> how many times as fast as bfloat16 it is to be.
GOALS = {1: 1.5, 32: 1.2}
_TURNS = ("bf16", "int8", "bf16 again")


@dataclass(frozen=True, slots=True)
class Int8Plan:
    """`checkpoint`: an INT8 checkpoint of `model`; None makes one. A stream alone makes more requests."""

    model: str = ServeConfig().model
    rounds: int = 7
    output_tokens: int = 64
    quantize_lm_head: bool = False
    checkpoint: Path | None = None

    def load(self, streams: int) -> Load:
        return Load(4 if streams == 1 else 2, self.output_tokens)


def measure_int8(plan: Int8Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Raises UsageError for what cannot be compared, or a server that does not start."""
    if plan.checkpoint is not None:
        _check_checkpoint(plan, plan.checkpoint)
    with tempfile.TemporaryDirectory(prefix="burrstone-int8-") as folder:
        models = Models(plan.model, Path(folder), say, quantize_lm_head=plan.quantize_lm_head)
        candidate = models.int8 if plan.checkpoint is None else str(plan.checkpoint)
        launches = {"bf16": burrstone(models.folder), "int8": burrstone(candidate)}
        with all_running(launches, say):
            found = asyncio.run(_in_turns(plan, {name: launch.port for name, launch in launches.items()}, say))
    return summarize(plan, found)


def summarize(plan: Int8Plan, found: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """found: turn -> streams -> tokens per second of each round. Each round is compared with its own bfloat16."""
    rows: dict[str, Any] = {}
    for streams, goal in GOALS.items():
        rounds = list(zip(*(found[turn][streams] for turn in _TURNS), strict=True))
        ratios = [2 * int8 / (bf16 + again) for bf16, int8, again in rounds]
        value = round(statistics.median(ratios), 3)
        rows[f"tokens_per_s_ratio_{streams}"] = {
            "value": value,
            "goal": f">= {goal}",
            "ok": value >= goal,
            "rounds": [round(ratio, 3) for ratio in ratios],
            "noise": round(statistics.median(abs(bf16 / again - 1) for bf16, _, again in rounds), 3),
            "tokens_per_s": {turn: round(statistics.median(found[turn][streams]), 1) for turn in _TURNS},
        }
    rows["setting"] = machine() | {
        "model": Path(plan.model).name,
        "rounds": plan.rounds,
        "output_tokens": plan.output_tokens,
        "quantize_lm_head": plan.quantize_lm_head,
        "checkpoint": None if plan.checkpoint is None else plan.checkpoint.name,
    }
    return rows


def _check_checkpoint(plan: Int8Plan, folder: Path) -> None:
    from burrstone.quant.errors import QuantizeError
    from burrstone.quant.formats import W8A8, format_of

    if plan.quantize_lm_head:
        raise UsageError("--quantize-lm-head is for the checkpoint that is made; --checkpoint has been made already")
    try:
        scheme = format_of(model_config(str(folder)), folder).scheme
    except QuantizeError as error:
        raise UsageError(str(error)) from error
    if scheme is not W8A8:
        raise UsageError(f"--checkpoint {folder} is no {W8A8.name} checkpoint")


async def _in_turns(
    plan: Int8Plan, ports: dict[str, int], say: Callable[[str], None]
) -> dict[str, dict[int, list[float]]]:
    # Not chat: a base model has no template for it.
    prompts = Prompts("completions")
    clients = {turn: HttpClient(ports[turn.split()[0]], "completions") for turn in _TURNS}
    found: dict[str, dict[int, list[float]]] = {turn: {streams: [] for streams in GOALS} for turn in _TURNS}
    say("warming up")
    for client in clients.values():
        await throughput(client, prompts, plan.load(32), 32)
    for turn in turns(_TURNS, plan.rounds, say):
        for streams in GOALS:
            found[turn][streams].append(await throughput(clients[turn], prompts, plan.load(streams), streams))
    for client in clients.values():
        await client.close()
    return found
