"""The peers under the same load, each alone on the machine: started, loaded, stopped, one after the other.

Two servers that are up at once share the cores even while one of them has nothing to do (Ray's processes never rest), so
none is up while another is measured. Every second round goes backwards, so that a machine that slows down does not
always slow the same ones, and before the first one a load is thrown away.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli.traffic import GENERATORS
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.load.drive import Terms
from burrstone.bench.load.offer import Plan, offer_whole
from burrstone.bench.machine import machine
from burrstone.bench.peers.floor import read_bytes_per_s, weight_bytes_per_token
from burrstone.bench.peers.models import Models
from burrstone.bench.peers.servers import running
from burrstone.bench.peers.table import MODEL, PEERS, missing
from burrstone.bench.rows import lines_of
from burrstone.serving.config import EMBEDDED_MODEL
from burrstone.serving.hardware import detect

# Streams -> requests of a round.
REQUESTS = {1: 4, 4: 8, 16: 32, 32: 64}
FIGURES = ("output_throughput", "median_ttft_ms", "p95_ttft_ms", "median_itl_ms", "client_lag_p99_ms")
# (one, other, streams) -> how many times the other's output tokens per second it is to have.
GOALS = {
    **{("burrstone", "vllm", streams): 0.95 for streams in REQUESTS},
    **{("burrstone-int8", "vllm-default", streams): 1.7 for streams in (1, 32)},
    ("burrstone-int8", "llama.cpp", 1): 1.5,
    ("burrstone-int8", "llama.cpp", 32): 7.0,
}
_WARM_UP_TOKENS = 16

# Peer -> streams -> figure -> its value in each round.
Found = dict[str, dict[int, dict[str, list[float]]]]


@dataclass(frozen=True, slots=True)
class PeersPlan:
    """Which are measured, and how much. `gguf`: llama.cpp's file where the model is not the embedded one."""

    names: Sequence[str] = tuple(PEERS)
    rounds: int = 2
    model: str = EMBEDDED_MODEL
    gguf: Path | None = None
    input_tokens: int = 64
    output_tokens: int = 48


def measure_peers(plan: PeersPlan, say: Callable[[str], None]) -> dict[str, Any]:
    """A peer that does not start, or fails a request, is left out, and why is told."""
    skipped = {name: reason for name in plan.names if (reason := missing(name)) is not None}
    names = [name for name in plan.names if name not in skipped]
    found: Found = {name: _nothing() for name in names}
    starts_s: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="burrstone-peers-") as folder:
        models = Models(plan.model, Path(folder), say, plan.gguf)
        for number, name in _visits(names, plan.rounds):
            if name in skipped:
                continue
            told = f"round {number} of {plan.rounds}: {name}" if number else f"warming up with {name}"
            into = found[name] if number else _nothing()
            try:
                launch = PEERS[name].launch(models)
                say(f"{told}, starting")
                begun_s = time.monotonic()
                with running(name, launch, Path(folder) / f"{name}.log") as url:
                    if number:
                        starts_s[name].append(time.monotonic() - begun_s)
                    say(f"{told}, loading")
                    _load(plan, number, url, into)
            except UsageError as failure:
                # One that fails does not take the others' figures along.
                say(f"{name} is left out: {failure}")
                skipped[name] = str(failure)
                del found[name]
        floors = _floors(models, found, say)
    return summary(plan, found, starts_s, skipped) | {"floor": _reached(found, floors)}


def _visits(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, peer). Round 0 counts for nothing: a machine that had been idle served its first peer a fifth slower."""
    yield from ((0, name) for name in names[:1])
    for number in range(1, rounds + 1):
        yield from ((number, name) for name in names[:: 1 if number % 2 else -1])


def _nothing() -> dict[int, dict[str, list[float]]]:
    return {streams: {figure: [] for figure in FIGURES} for streams in REQUESTS}


def _floors(models: Models, names: Container[str], say: Callable[[str], None]) -> dict[str, float]:
    """Peer -> tokens per second of one stream that memory allows, for those whose weights are safetensors."""
    say("measuring memory")
    folders: dict[str, Callable[[], str]] = {
        "burrstone": lambda: models.folder,
        "burrstone-int8": lambda: models.int8,
    }
    bytes_per_s = read_bytes_per_s(len(detect().cores))
    return {
        name: bytes_per_s / weight_bytes_per_token(Path(folder())) for name, folder in folders.items() if name in names
    }


def _reached(found: Found, floors: Mapping[str, float]) -> dict[str, Any]:
    """How much of the floor one stream's gaps between tokens reach."""
    reached = {}
    for name, tokens_per_s in floors.items():
        gap_ms = statistics.median(found[name][1]["median_itl_ms"])
        reached[name] = {"tokens_per_s": round(tokens_per_s, 1), "reached": round(1000.0 / gap_ms / tokens_per_s, 3)}
    return reached


def _load(plan: PeersPlan, number: int, url: str, found: dict[int, dict[str, list[float]]]) -> None:
    # Another seed each time: a prompt that the server has met is no prompt.
    seeds = itertools.count(100 * number)
    for streams in REQUESTS:
        _run(url, _workload(streams, plan.input_tokens, _WARM_UP_TOKENS), streams, next(seeds))
    for streams, requests in REQUESTS.items():
        run = _run(url, _workload(requests, plan.input_tokens, plan.output_tokens), streams, next(seeds))
        for figure in FIGURES:
            found[streams][figure].append(run[figure])


def _workload(requests: int, input_tokens: int, output_tokens: int) -> Workload:
    made = GENERATORS["fixed"].make(2.0 * requests, 10.0, 0, input=input_tokens, output=output_tokens, cv=1)
    return made.take(np.arange(requests))


def _run(url: str, workload: Workload, streams: int, seed: int) -> dict[str, Any]:
    """Streams that take turns. An answer of another length than asked for would make a tokens/s of something else."""
    offered = offer_whole(Plan(workload, Terms(models=(MODEL,)), url, concurrency=streams, seed=seed))
    for record in offered.records:
        asked = int(workload.output_tokens[record.number])
        if record.error is not None or record.output_tokens != asked:
            raise UsageError(f"{url}: {record.error or f'an answer of {asked} tokens has {record.output_tokens}'}")
    return offered.summary()


def summary(
    plan: PeersPlan, found: Found, starts_s: Mapping[str, Sequence[float]], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Medians over the rounds, ratios round by round, and the noise: how far servers are from themselves between rounds."""
    peers = {
        name: {
            "what": PEERS[name].text,
            "precision": PEERS[name].precision,
            "start_s": round(statistics.median(starts_s[name]), 1),
            "streams": {
                str(streams): {figure: round(statistics.median(values), 2) for figure, values in figures.items()}
                | {"output_throughput_rounds": [round(value, 1) for value in figures["output_throughput"]]}
                for streams, figures in by_streams.items()
            },
        }
        for name, by_streams in found.items()
    }
    return {
        "setting": machine()
        | {"model": Path(plan.model).name, "rounds": plan.rounds, "requests": {str(k): v for k, v in REQUESTS.items()}}
        | {"input_tokens": plan.input_tokens, "output_tokens": plan.output_tokens},
        "peers": peers,
        "skipped": dict(skipped),
        "noise": {str(streams): _noise(found, streams) for streams in REQUESTS},
        "ratios": _ratios(found),
    }


def _ratios(found: Found) -> dict[str, Any]:
    rows = {}
    for (one, other, streams), goal in GOALS.items():
        if one in found and other in found:
            pairs = zip(*(found[name][streams]["output_throughput"] for name in (one, other)), strict=True)
            rounds = [mine / theirs for mine, theirs in pairs]
            value = round(statistics.median(rounds), 3)
            rows[f"{one} / {other} at {streams}"] = {
                "value": value,
                "goal": f">= {goal}",
                "ok": value >= goal,
                "rounds": [round(ratio, 3) for ratio in rounds],
            }
    return rows


def _noise(found: Found, streams: int) -> float | None:
    spreads = [
        max(values) / min(values) - 1
        for by_streams in found.values()
        if len(values := by_streams[streams]["output_throughput"]) > 1
    ]
    return round(statistics.median(spreads), 3) if spreads else None


def table(result: dict[str, Any]) -> str:
    """For people."""
    streams = [str(count) for count in REQUESTS]
    heads = "".join(f"{f'{count} streams':>22}" for count in streams)
    lines = [f"{'tokens/s, TTFT p50/p95':24}{heads}"]
    for name, peer in result["peers"].items():
        cells = ""
        for count in streams:
            row = peer["streams"][count]
            told = f"{row['output_throughput']:.1f}, {row['median_ttft_ms']:.0f}/{row['p95_ttft_ms']:.0f} ms"
            cells += f"{told:>22}"
        lines.append(f"{name:24}{cells}")
    lines += [f"{name}: left out, {reason}" for name, reason in result["skipped"].items()]
    lines += lines_of(result["ratios"])
    lines += [
        f"{name}: one stream reaches {floor['reached']:.2f} of what memory allows, {floor['tokens_per_s']:.0f} tokens/s"
        for name, floor in result.get("floor", {}).items()
    ]
    noise = ", ".join(
        f"{100 * value:.0f} % at {count}" for count, value in result["noise"].items() if value is not None
    )
    return "\n".join(
        [*lines, f"noise (each server against itself, between rounds): {noise or 'not known from one round'}"]
    )
