"""Target 6: a flooding tenant costs the other nothing, nor does fairness cost throughput; and the service gap is bounded."""

from burrstone.batching.sim.fairness_bound import random_load, widest_gap
from burrstone.batching.sim.measures import quantiles
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets.judge import Context, Row, at_most
from burrstone.batching.sim.traffic.workload import flood

SEEDS = (1, 2, 3)
DURATION_S = 120.0
NUM_LOADS = 1000
_VICTIM = 0
_REPORT_EVERY = 20


def run(context: Context) -> dict[str, Row]:
    """The worst of three seeds, and of a thousand random loads. One 8B engine, on which the flood is a heavy overload."""
    waits, stretches = [], []
    for index, seed in enumerate(SEEDS):
        context.progress(0.2 * index / len(SEEDS), f"flood, seed {seed}")
        (stock_s, stock_end_s), (fair_s, fair_end_s) = (_flooded(policy, seed) for policy in ("fcfs", "vtc"))
        waits.append(fair_s / stock_s)
        stretches.append(fair_end_s / stock_end_s)
    worst = 0.0
    for seed in range(NUM_LOADS):
        if seed % _REPORT_EVERY == 0:
            context.progress(0.2 + 0.8 * seed / NUM_LOADS, f"service gaps, load {seed} of {NUM_LOADS}")
        gap, bound = widest_gap(random_load(seed))
        worst = max(worst, gap / bound)
    return {
        "6-victim-p99-ttft-over-fcfs": at_most(max(waits), 0.1),
        "6-makespan-over-fcfs": at_most(max(stretches), 1.02),
        "6-service-gap-over-bound": at_most(worst, 1.0),
    }


def _flooded(policy: str, seed: int) -> tuple[float, float]:
    """(the victim's p99 TTFT, when everything was done)."""
    workload = flood(DURATION_S, seed, flood_rate=20.0)
    result = simulate(EngineSpec(policy=policy), workload)
    found = result.latencies(workload)
    return quantiles(found.ttft_s[workload.tenant == _VICTIM])[-1], result.makespan_s
