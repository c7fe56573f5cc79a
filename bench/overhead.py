"""What burrstone costs over bare vLLM: the same load on both in turns, so that the machine's moods hit both alike.

Bare vLLM is loaded twice in every round; the two differ by nothing but chance, and how much they do is the noise.
"""

import asyncio
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from burrstone.bench.machine import machine
from burrstone.bench.peers.servers import all_running, free_port
from burrstone.bench.peers.table import burrstone, vllm
from burrstone.bench.stream_client import GrpcClient, HttpClient, StreamClient
from burrstone.bench.stream_load import Load, Prompts, throughput, turns
from burrstone.serving.config import EMBEDDED_MODEL, ServeConfig
from burrstone.serving.engine.models import resolve_model

CONCURRENCIES = (8, 32)
_TTFT_REQUESTS = 12
_TTFT_TOKENS = 4
_TARGETS = ("bare", "bare again", "http", "grpc")


@dataclass(frozen=True, slots=True)
class OverheadPlan:
    """How much is measured. Every stream makes `requests_per_stream` requests of `output_tokens` tokens a round."""

    rounds: int = 7
    api: str = "chat"
    requests_per_stream: int = 2
    output_tokens: int = 64

    @property
    def load(self) -> Load:
        return Load(self.requests_per_stream, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Wire:
    """Against bare vLLM: medians over the rounds. `throughput_ratio` is the worst of the concurrencies."""

    ttft_added_p50_ms: float
    throughput_ratio: float
    throughput_ratio_by_streams: dict[str, float]
    throughput_ratios_of_rounds: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Overhead:
    """`noise`, `noise_ttft_ms`: how far bare vLLM was from itself within a round, the median over the rounds."""

    http: Wire
    grpc: Wire
    noise: float
    noise_ttft_ms: float
    bare: dict[str, float]
    setting: dict[str, Any]


@dataclass(slots=True)
class Samples:
    """One target's figures, a list entry a round."""

    ttft_p50_ms: list[float] = field(default_factory=list)
    tokens_per_s: dict[int, list[float]] = field(default_factory=lambda: {streams: [] for streams in CONCURRENCIES})


def measure_overhead(plan: OverheadPlan, say: Callable[[str], None]) -> Overhead:
    """Start the servers, load them in turns, compare. Raises UsageError when a server does not start."""
    model, grpc_port = resolve_model(EMBEDDED_MODEL, ServeConfig().cache_dir.expanduser(), say), free_port()
    bare, ours = vllm(model.path, recipe=True), burrstone(EMBEDDED_MODEL, grpc_port=grpc_port)

    def connect() -> dict[str, StreamClient]:
        return {
            "bare": HttpClient(bare.port, plan.api),
            "bare again": HttpClient(bare.port, plan.api),
            "http": HttpClient(ours.port, plan.api),
            "grpc": GrpcClient(grpc_port, plan.api),
        }

    with all_running({"bare vLLM": bare, "burrstone": ours}, say):
        samples = asyncio.run(_load_in_turns(plan, connect, say))
    return summarize(plan, samples)


async def _load_in_turns(
    plan: OverheadPlan, connect: Callable[[], dict[str, StreamClient]], say: Callable[[str], None]
) -> dict[str, Samples]:
    clients = connect()
    prompts = Prompts(plan.api)
    samples = {target: Samples() for target in _TARGETS}
    say("warming up")
    for client in clients.values():
        await throughput(client, prompts, plan.load, max(CONCURRENCIES))
    for target in turns(_TARGETS, plan.rounds, say):
        client, found = clients[target], samples[target]
        found.ttft_p50_ms.append(await _ttft_p50_ms(client, prompts))
        for streams in CONCURRENCIES:
            found.tokens_per_s[streams].append(await throughput(client, prompts, plan.load, streams))
    for client in clients.values():
        await client.close()
    return samples


async def _ttft_p50_ms(client: StreamClient, prompts: Prompts) -> float:
    times_ms = [1000 * (await client.stream(prompts.body(_TTFT_TOKENS))).first_s for _ in range(_TTFT_REQUESTS)]
    return statistics.median(times_ms)


def summarize(plan: OverheadPlan, samples: dict[str, Samples]) -> Overhead:
    """Each round is compared with its own round's bare vLLM; the figure is the median over the rounds."""
    bare, again = samples["bare"], samples["bare again"]

    def added_ms(target: Samples) -> float:
        rounds = zip(target.ttft_p50_ms, bare.ttft_p50_ms, again.ttft_p50_ms, strict=True)
        return statistics.median(ours - (one + two) / 2 for ours, one, two in rounds)

    def ratios(target: Samples, streams: int) -> list[float]:
        found = target.tokens_per_s[streams], bare.tokens_per_s[streams], again.tokens_per_s[streams]
        return [round(2 * ours / (one + two), 3) for ours, one, two in zip(*found, strict=True)]

    def wire(target: Samples) -> Wire:
        rounds = {str(streams): ratios(target, streams) for streams in CONCURRENCIES}
        medians = {streams: round(statistics.median(of_rounds), 3) for streams, of_rounds in rounds.items()}
        return Wire(round(added_ms(target), 2), min(medians.values()), medians, rounds)

    spreads = [
        abs(one / two - 1)
        for streams in CONCURRENCIES
        for one, two in zip(bare.tokens_per_s[streams], again.tokens_per_s[streams], strict=True)
    ]
    ttft_spreads = [abs(one - two) for one, two in zip(bare.ttft_p50_ms, again.ttft_p50_ms, strict=True)]
    absolute = {
        f"tokens_per_s_{streams}": round(statistics.median(bare.tokens_per_s[streams]), 1) for streams in CONCURRENCIES
    }
    return Overhead(
        http=wire(samples["http"]),
        grpc=wire(samples["grpc"]),
        noise=round(statistics.median(spreads), 3),
        noise_ttft_ms=round(statistics.median(ttft_spreads), 2),
        bare={"ttft_p50_ms": round(statistics.median(bare.ttft_p50_ms), 2)} | absolute,
        setting=_setting(plan),
    )


def _setting(plan: OverheadPlan) -> dict[str, Any]:
    return machine() | {
        "model": "smollm2-135m-instruct",
        "api": plan.api,
        "rounds": plan.rounds,
        "output_tokens": plan.output_tokens,
        "requests_per_stream": plan.requests_per_stream,
    }


def table(result: Overhead) -> str:
    """The result for people."""
    lines = [f"{'':12}{'added TTFT p50':>16}" + "".join(f"{f'x at {streams}':>10}" for streams in CONCURRENCIES)]
    for name, wire in (("HTTP", result.http), ("gRPC", result.grpc)):
        ratios = "".join(f"{wire.throughput_ratio_by_streams[str(streams)]:>10.3f}" for streams in CONCURRENCIES)
        lines.append(f"{name:12}{wire.ttft_added_p50_ms:>13.2f} ms{ratios}")
    lines.append(f"{'noise (A/A)':12}{result.noise_ttft_ms:>13.2f} ms{result.noise:>10.3f}")
    lines.append(f"bare vLLM: {result.bare}")
    return "\n".join(lines)
