"""Workloads made up from a seed, and workloads of traces changed: rates, tenants, mixtures. Equal seeds, equal workloads."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from burrstone.batching.core.requests import NO_DEADLINE_S
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.arrivals import Lengths, LogNormal, constant_arrivals, gamma_arrivals
from burrstone.batching.sim.traffic.workload_types import NONE, Ints, Prefixes, Workload


@dataclass(frozen=True, slots=True)
class Slo:
    """What a class of requests asks for; NO_DEADLINE_S where it does not care."""

    ttft_s: float = NO_DEADLINE_S
    tpot_s: float = NO_DEADLINE_S
    e2e_s: float = NO_DEADLINE_S


INTERACTIVE = Slo(ttft_s=1.0, tpot_s=0.05)
BATCH = Slo(e2e_s=60.0)

# Percentiles of Azure's public traces of 2023 (CC-BY 4.0).
CHAT_INPUT, CHAT_OUTPUT = LogNormal.of_percentiles(1020, 4142), LogNormal.of_percentiles(129, 601)
CODE_INPUT, CODE_OUTPUT = LogNormal.of_percentiles(1469, 7436), LogNormal.of_percentiles(13, 251)
CODE_CV = 13.2


@dataclass(frozen=True, slots=True)
class Stream:
    """What one tenant sends. cv: of the gaps between requests; 1 is Poisson, 0 even, above 1 bursts."""

    rate: float  # requests a second
    input_tokens: Lengths = CHAT_INPUT
    output_tokens: Lengths = CHAT_OUTPUT
    cv: float = 1.0
    slo: Slo = Slo()
    priority: int = 0
    weight: float = 1.0


def generate(streams: list[Stream], duration_s: float, seed: int) -> Workload:
    """One tenant a stream, in the order given."""
    parts = []
    for number, stream in enumerate(streams):
        # A stream of its own for each tenant: a change of one leaves the others as they were.
        rng = np.random.default_rng([seed, number])
        if stream.cv == 0:
            arrival_s = constant_arrivals(stream.rate, duration_s)
        else:
            arrival_s = gamma_arrivals(rng, stream.rate, duration_s, cv=stream.cv)
        size = len(arrival_s)
        part = Workload(arrival_s, stream.input_tokens.draw(rng, size), stream.output_tokens.draw(rng, size))
        parts.append(with_terms(part, slo=stream.slo, priority=stream.priority, weight=stream.weight))
    return merge(parts)


def chat_and_code(rate: float, duration_s: float, seed: int) -> Workload:
    """Interactive chat (tenant 0), two thirds of the requests, and bursts of code completion as a batch job (tenant 1)."""
    chat = Stream(rate * 2 / 3, slo=INTERACTIVE)
    code = Stream(rate / 3, CODE_INPUT, CODE_OUTPUT, cv=CODE_CV, slo=BATCH, priority=1)
    return generate([chat, code], duration_s, seed)


def flood(duration_s: float, seed: int, *, victim_rate: float = 1.5, flood_rate: float = 10.0) -> Workload:
    """Tenant 0 sends little, tenant 1 far more than its share; both send chats."""
    return generate([Stream(victim_rate), Stream(flood_rate)], duration_s, seed)


def at_speed(workload: Workload, speed: float) -> Workload:
    """The same requests, arriving `speed` times as fast. Pauses within programs stay as they are."""
    if speed <= 0:
        raise UsageError(f"workload: speed must be > 0, got {speed}")
    return replace(workload, arrival_s=workload.arrival_s / speed)


def at_rate(workload: Workload, rate: float) -> Workload:
    """The same requests at so many a second on average."""
    span_s = float(workload.arrival_s[-1]) if len(workload) else 0.0
    if span_s <= 0:
        raise UsageError("workload: needs requests at two different times to have a rate")
    return at_speed(workload, rate * span_s / len(workload))


def evenly(workload: Workload) -> Workload:
    """The same requests in the same time, equally far apart. Raises UsageError for programs, whose calls wait for answers."""
    if np.any(workload.after != NONE):
        raise UsageError("workload: calls that follow one another cannot arrive evenly")
    span_s = float(workload.arrival_s[-1]) if len(workload) else 0.0
    return replace(workload, arrival_s=np.linspace(0.0, span_s, len(workload)))


def between(workload: Workload, start_s: float, end_s: float) -> Workload:
    """The requests that arrive in [start_s, end_s), which becomes time 0 on."""
    first, after = np.searchsorted(workload.arrival_s, [start_s, end_s])
    part = workload.take(np.arange(first, after))
    return replace(part, arrival_s=part.arrival_s - start_s)


def with_terms(workload: Workload, *, slo: Slo, priority: int = 0, weight: float = 1.0) -> Workload:
    """All requests as one tenant's, with its terms."""
    size = len(workload)
    return replace(
        workload,
        tenant=np.zeros(size, np.int64),
        tenant_weight=np.array([weight]),
        priority=np.full(size, priority),
        ttft_s=np.full(size, slo.ttft_s),
        tpot_s=np.full(size, slo.tpot_s),
        e2e_s=np.full(size, slo.e2e_s),
    )


def merge(parts: list[Workload]) -> Workload:
    """All requests of the parts in order of arrival. Tenants and programs of different parts stay different; equal
    prefix hashes stay equal."""
    if not parts:
        raise UsageError("workload: nothing to merge")
    order = np.argsort(np.concatenate([part.arrival_s for part in parts]), kind="stable")
    columns: dict[str, Any] = {}
    for column in fields(Workload):
        if column.name not in ("prefixes", "tenant_weight"):
            offsets = _offsets(parts, column.name)
            moved = [_shifted(getattr(part, column.name), by) for part, by in zip(parts, offsets, strict=True)]
            columns[column.name] = np.concatenate(moved)[order]
    place = np.full(len(order) + 1, NONE)
    place[order] = np.arange(len(order))
    columns["after"] = place[columns["after"]]
    weights = np.concatenate([part.tenant_weight for part in parts])
    return Workload(**columns, tenant_weight=weights, prefixes=_merged_prefixes(parts, order))


def _offsets(parts: list[Workload], column: str) -> list[int]:
    """What is added to the numbers of each part, to keep them apart from those of the parts before."""
    sizes = {
        "tenant": [part.num_tenants for part in parts],
        "program": [int(part.program.max(initial=NONE)) + 1 for part in parts],
        "after": [len(part) for part in parts],
    }.get(column, [0] * len(parts))
    return [sum(sizes[:number]) for number in range(len(parts))]


def _shifted(values: Any, by: int) -> Any:
    return np.where(values >= 0, values + by, values) if by else values


def _merged_prefixes(parts: list[Workload], order: Ints) -> Prefixes | None:
    given = [part.prefixes for part in parts if part.prefixes is not None]
    if not given:
        return None
    if len({prefixes.block_tokens for prefixes in given}) > 1:
        raise UsageError("workload: merge() needs prefixes with blocks of one size")
    hashes = np.concatenate([prefixes.hashes for prefixes in given])
    counts = [
        np.zeros(len(part), np.int64) if part.prefixes is None else np.diff(part.prefixes.starts) for part in parts
    ]
    ends = np.cumsum(np.concatenate(counts))
    starts = ends - np.concatenate(counts)
    rows = [hashes[starts[row] : ends[row]] for row in order]
    merged_starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Prefixes(merged_starts, np.concatenate([*rows, hashes[:0]]), given[0].block_tokens)
