"""From what became of each request to the figures of a policy: over seeds, by tenant, over time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from burrstone.batching.sim.measures import (
    Latencies,
    Summary,
    fairness,
    latencies,
    program_seconds,
    quantiles,
    summarise,
    tokens_served,
)
from burrstone.batching.sim.report.sections import Contender, TenantFigures, Timeline
from burrstone.batching.sim.run import Result
from burrstone.batching.sim.traffic.workload_types import Floats, Workload

_TIMELINE_POINTS = 200


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one policy."""

    seed: int
    workload: Workload
    result: Result
    found: Latencies
    summary: Summary
    programs_s: Floats  # how long each agent program took


def trial(seed: int, workload: Workload, result: Result, duration_s: float) -> Trial:
    """The figures of a run whose requests came within duration_s."""
    arrival_s = np.where(result.arrival_s >= 0, result.arrival_s, workload.arrival_s)
    found = latencies(workload, arrival_s, result.first_token_s, result.ended_s, result.finished)
    programs_s = program_seconds(workload, arrival_s, found)
    return Trial(seed, workload, result, found, summarise(workload, found, duration_s), programs_s)


def contender(
    name: str, trials: Sequence[Trial], duration_s: float, kv_tokens: float, tenant_names: Sequence[str] = ()
) -> Contender:
    """All trials of one policy together; they must have the same tenants. kv_tokens: that fit into the KV cache."""
    requests = sum(len(t.workload) for t in trials)
    pooled = pool([t.found for t in trials])
    whole = _joined([t.workload for t in trials])
    length_s = duration_s * len(trials)
    shares = [_service(t) for t in trials]
    service = np.mean([by_tenant for _, by_tenant in shares], axis=0)
    tenants = tuple(
        TenantFigures(
            name=tenant_names[number] if number < len(tenant_names) else f"tenant {number}",
            weight=float(weight),
            service=float(service[number]),
            summary=summarise(whole, pooled, length_s, whole.tenant == number),
        )
        for number, weight in enumerate(trials[0].workload.tenant_weight)
    )
    asked = sum(t.result.asked_tokens for t in trials)
    return Contender(
        name=name,
        seeds=tuple(t.summary for t in trials),
        pooled=summarise(whole, pooled, length_s),
        latencies=pooled,
        programs_s=_mean_and_tail(np.concatenate([t.programs_s for t in trials])),
        jain=float(np.mean([index for index, _ in shares])),
        tenants=tenants,
        preemptions=1000 * sum(t.result.num_preemptions for t in trials) / max(requests, 1),
        hit_rate=sum(t.result.hit_tokens for t in trials) / asked if asked else 0.0,
        timeline=timeline(trials[0].workload, trials[0].result, kv_tokens),
    )


def pool(found: Sequence[Latencies]) -> Latencies:
    """The requests of several runs as those of one."""
    return Latencies(
        ttft_s=np.concatenate([f.ttft_s for f in found]),
        tpot_s=np.concatenate([f.tpot_s for f in found]),
        e2e_s=np.concatenate([f.e2e_s for f in found]),
        good=np.concatenate([f.good for f in found]),
    )


def timeline(workload: Workload, result: Result, kv_tokens: float) -> Timeline:
    """State of the engines over time, from each request's own times: exact for the queue and the batch but for requests
    that were preempted, whose KV cache is drawn as if they had not been."""
    times_s = np.linspace(0.0, max(result.makespan_s, 1e-9), _TIMELINE_POINTS)
    came = result.arrival_s >= 0
    ran = result.scheduled_s >= 0
    left_queue = np.where(ran, result.scheduled_s, result.ended_s)
    waiting = _count(result.arrival_s[came], times_s) - _count(left_queue[came & (left_queue >= 0)], times_s)
    running = _count(result.scheduled_s[ran], times_s) - _count(result.ended_s[ran], times_s)
    held = _tokens_held(workload, result, times_s)
    return Timeline(times_s, waiting, running, np.clip(held / kv_tokens, 0.0, 1.0))


def _tokens_held(workload: Workload, result: Result, times_s: Floats) -> Floats:
    """Each request's tokens rise evenly from its start to its first token, and from there to its last."""
    spoke = result.first_token_s >= 0
    start, first, last = (column[spoke] for column in (result.scheduled_s, result.first_token_s, result.ended_s))
    prompt = workload.input_tokens[spoke].astype(np.float64)
    output = result.output_tokens[spoke].astype(np.float64)
    cached = np.minimum(result.cached_tokens[spoke], prompt)
    filling = _slope(prompt - cached, first - start)
    saying = _slope(output, last - first)
    at = np.concatenate([start, first, last])
    after_first = prompt - cached - filling * (first - start)
    rise = np.concatenate([cached, after_first, -prompt - saying * (last - first)])
    slope = np.concatenate([filling, saying - filling, -saying])
    order = np.argsort(at, kind="stable")
    base = np.concatenate([[0.0], np.cumsum((rise - slope * at)[order])])
    slopes = np.concatenate([[0.0], np.cumsum(slope[order])])
    place = np.searchsorted(at[order], times_s, side="right")
    return np.maximum(base[place] + slopes[place] * times_s, 0.0)


def _slope(tokens: Floats, length_s: Floats) -> Floats:
    return np.where(length_s > 0, tokens / np.where(length_s > 0, length_s, 1.0), 0.0)


def _count(at_s: Floats, times_s: Floats) -> Floats:
    return np.searchsorted(np.sort(at_s), times_s, side="right").astype(np.float64)


def _service(t: Trial) -> tuple[float, Floats]:
    arrival_s = np.where(t.result.arrival_s >= 0, t.result.arrival_s, np.inf)
    came = np.isfinite(arrival_s)
    until_s = float(arrival_s[came].max()) if came.any() else 0.0
    served = tokens_served(t.workload, t.found, np.where(came, arrival_s, 0.0), until_s)
    asked = (t.workload.input_tokens + t.workload.output_tokens).astype(np.float64) * came
    return fairness(served, asked, t.workload.tenant, t.workload.tenant_weight)


def _mean_and_tail(programs_s: Floats) -> tuple[float, float, float]:
    p50, _, p99 = quantiles(programs_s)
    return (float(programs_s.mean()) if len(programs_s) else np.nan, p50, p99)


def _joined(workloads: Sequence[Workload]) -> Workload:
    """One after another, for counting only: arrivals are not those of any run."""
    return Workload(
        arrival_s=np.zeros(sum(len(w) for w in workloads)),
        input_tokens=np.concatenate([w.input_tokens for w in workloads]),
        output_tokens=np.concatenate([w.output_tokens for w in workloads]),
        tenant=np.concatenate([w.tenant for w in workloads]),
        priority=np.concatenate([w.priority for w in workloads]),
        tenant_weight=workloads[0].tenant_weight,
    )
