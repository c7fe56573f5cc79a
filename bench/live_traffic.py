"""Serve a simulator's workload on a live engine: the same requests, at the same times, and the same figures come out."""

import heapq
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from burrstone.batching.sim.measures import Latencies, latencies
from burrstone.batching.sim.traffic.arrivals import LogNormal
from burrstone.batching.sim.traffic.workload_types import NONE, Floats, Workload
from burrstone.bench.live_engine import LiveEngine
from burrstone.serving.engine.scheduling.options import CPU_STEP_MODEL, SchedulerOptions

# Lengths of chats that a 135M model on two cores serves several of a second.
SHORT_IN, SHORT_OUT = LogNormal(80, 0.6, most=300), LogNormal(16, 0.6, most=64)
# Token ids that texts are made of: no special ones.
_FIRST_TOKEN, _LAST_TOKEN = 100, 40_000


@dataclass(slots=True)
class Served:
    """What became of each request, in the workload's order; seconds since the start, infinite for what never came."""

    workload: Workload
    arrival_s: Floats
    first_token_s: Floats
    ended_s: Floats
    token_gaps_s: list[float]  # between the tokens of a request, all requests together
    makespan_s: float

    @property
    def found(self) -> Latencies:
        return latencies(self.workload, self.arrival_s, self.first_token_s, self.ended_s, np.isfinite(self.ended_s))


@dataclass(slots=True)
class _Traffic:
    """Requests on their way: a heap of (when due, number), who follows whom, and what has been said."""

    workload: Workload
    rng: np.random.Generator
    due: list[tuple[float, int]]
    followers: dict[int, list[int]] = field(default_factory=dict)
    said: dict[int, list[int]] = field(default_factory=dict)  # prompt and answer of calls that others build on
    last_token_s: dict[int, float] = field(default_factory=dict)


def serve_by(engine: LiveEngine, policy: str | None, workload: Workload) -> Served:
    """By this policy, or in vLLM's own order; with an empty prefix cache, where the same prompts again would be found."""
    engine.use(None if policy is None else SchedulerOptions(policy, model=CPU_STEP_MODEL))
    return serve(engine, workload)


def serve(engine: LiveEngine, workload: Workload, seed: int = 0) -> Served:
    """Open loop: a request is handed over when it is due, however far behind the engine is; its TTFT counts from then.

    A call of a program is its predecessor's prompt and real answer and as many new tokens as are missing.
    """
    size = len(workload)
    served = Served(workload, np.full(size, np.inf), np.full(size, np.inf), np.full(size, np.inf), [], 0.0)
    traffic = _Traffic(workload, np.random.default_rng(seed), [])
    for number in range(size):
        if workload.after[number] == NONE:
            traffic.due.append((float(workload.arrival_s[number]), number))
        else:
            traffic.followers.setdefault(int(workload.after[number]), []).append(number)
    heapq.heapify(traffic.due)
    zero_s = time.perf_counter()
    while traffic.due or engine.num_unfinished:
        now_s = time.perf_counter() - zero_s
        while traffic.due and traffic.due[0][0] <= now_s:
            due_s, number = heapq.heappop(traffic.due)
            served.arrival_s[number] = due_s
            engine.add(
                str(number), _prompt(traffic, number), int(workload.output_tokens[number]), _meta(workload, number)
            )
        if not engine.num_unfinished:
            time.sleep(max(traffic.due[0][0] - now_s, 0.0))
            continue
        outputs = engine.advance()
        _note(served, traffic, outputs, time.perf_counter() - zero_s)
    served.makespan_s = time.perf_counter() - zero_s
    return served


def _note(served: Served, traffic: _Traffic, outputs: list[tuple[str, list[int], bool]], now_s: float) -> None:
    for name, tokens, finished in outputs:
        number = int(name)
        if tokens:
            if number in traffic.last_token_s:
                served.token_gaps_s.append(now_s - traffic.last_token_s[number])
            else:
                served.first_token_s[number] = now_s
            traffic.last_token_s[number] = now_s
            if number in traffic.followers:
                traffic.said[number] += tokens
        if finished:
            served.ended_s[number] = now_s
            for follower in traffic.followers.get(number, ()):
                heapq.heappush(traffic.due, (now_s + float(traffic.workload.think_s[follower]), follower))


def _prompt(traffic: _Traffic, number: int) -> list[int]:
    workload = traffic.workload
    before = traffic.said.get(int(workload.after[number]), [])
    missing = int(workload.input_tokens[number]) - len(before)
    fresh = traffic.rng.integers(_FIRST_TOKEN, _LAST_TOKEN, max(missing, 1)).tolist()
    prompt: list[int] = before + fresh
    if number in traffic.followers:
        traffic.said[number] = list(prompt)
    return prompt


def _meta(workload: Workload, number: int) -> dict[str, Any]:
    """As the seam writes it. Infinite means none."""
    tenant = int(workload.tenant[number])
    program = int(workload.program[number])
    e2e_s = float(workload.e2e_s[number])
    return {
        "tenant": str(tenant),
        "weight": float(workload.tenant_weight[tenant]),
        "priority": int(workload.priority[number]),
        "ttft_s": _finite(float(workload.ttft_s[number])),
        "tpot_s": _finite(float(workload.tpot_s[number])),
        "deadline_unix_s": time.time() + e2e_s if np.isfinite(e2e_s) else None,
        "program_id": None if program == NONE else str(program),
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
