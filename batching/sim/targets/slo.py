"""Target 5: how much traffic an engine takes while nineteen in twenty requests keep their SLO, and what overload leaves.

Two thirds of the requests are chats (first token in 1 s, then 50 ms a token), the rest comes in bursts as a batch job
(done within 60 s): the arrivals and lengths of Azure's two traces of 2023, at a common rate. One 8B engine.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets.judge import Context, Row, at_least
from burrstone.batching.sim.traffic.traces import read_azure
from burrstone.batching.sim.traffic.workload import BATCH, INTERACTIVE, at_rate, between, merge, with_terms
from burrstone.batching.sim.traffic.workload_types import Workload

SEEDS = (1, 2, 3)
ATTAINMENT = 0.95
WINDOW_S = 600.0
_STEPS = 8
_RATES = (0.5, 16.0)
# Attainment below this counts as this, or the ratio to a policy that met nothing would be infinite.
_LEAST = 0.01


def run(context: Context) -> dict[str, Row]:
    """Capacities are the worst of three seeds relative to the other policy on the same requests."""
    chat, code = (read_azure(context.trace(f"azure_llm_2023_{kind}.csv")) for kind in ("conv", "code"))
    capacity: dict[str, list[float]] = {"fcfs": [], "priority": [], "slo": []}
    overload = []
    for index, seed in enumerate(SEEDS):
        for place, (policy, found) in enumerate(capacity.items()):
            context.progress((index + place / 3) / len(SEEDS), f"capacity of {policy}, seed {seed}")
            found.append(_capacity(partial(_attained_at, policy, chat, code, seed)))
        rush = _mix(chat, code, 2 * _throughput(_mix(chat, code, _RATES[1], seed)), seed)
        overload.append(_attained("slo", rush)[0] / max(_attained("fcfs", rush)[0], _LEAST))
    ours, stock, static = (np.array(capacity[policy]) for policy in ("slo", "fcfs", "priority"))
    return {
        "5-capacity-over-fcfs": at_least(float((ours / stock).min()), 1.5),
        "5-capacity-over-priority": at_least(float((ours / static).min()), 1.2),
        "5-overload-interactive-over-fcfs": at_least(min(overload), 4.0),
    }


def _mix(chat: Workload, code: Workload, rate: float, seed: int) -> Workload:
    """Ten minutes at this rate from somewhere in each trace, the chats two thirds of it."""
    rng = np.random.default_rng(seed)
    parts = []
    for trace, share, slo, priority in ((chat, 2 / 3, INTERACTIVE, 0), (code, 1 / 3, BATCH, 1)):
        paced = at_rate(trace, rate * share)
        span_s = float(paced.arrival_s[-1])
        start_s = rng.uniform(0, max(span_s - WINDOW_S, 0))
        parts.append(with_terms(between(paced, start_s, start_s + WINDOW_S), slo=slo, priority=priority))
    return merge(parts)


def _attained_at(policy: str, chat: Workload, code: Workload, seed: int, rate: float) -> tuple[float, float]:
    return _attained(policy, _mix(chat, code, rate, seed))


def _attained(policy: str, workload: Workload) -> tuple[float, float]:
    """Share of the interactive and of the batch requests that kept their SLO."""
    result = simulate(EngineSpec(policy=policy), workload)
    good = result.latencies(workload).good
    return float(good[workload.tenant == 0].mean()), float(good[workload.tenant == 1].mean())


def _throughput(flood: Workload) -> float:
    """Requests a second that the engine serves when it is never idle."""
    return len(flood) / simulate(EngineSpec(), flood).makespan_s


def _capacity(attained: Callable[[float], tuple[float, float]]) -> float:
    """The highest rate, within 3 %, at which both kinds of requests attain; bisection on a logarithmic scale."""
    low, high = _RATES
    for _ in range(_STEPS):
        rate = float(np.sqrt(low * high))
        if min(attained(rate)) >= ATTAINMENT:
            low = rate
        else:
            high = rate
    return low
