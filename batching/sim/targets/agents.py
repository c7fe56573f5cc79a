"""Target 8: how long agent programs take when whole programs are served in order and their KV caches kept between calls.

Programs of six to fourteen calls with tools at work between them, on one 8B engine with room for 120,000 tokens of KV.
Near saturation is 0.24 programs a second: there, stock vLLM's engine is overloaded and ours is about to be.
"""

from burrstone.batching.sim.measures import program_seconds
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets.judge import Context, Row, at_most
from burrstone.batching.sim.traffic.agents import AgentLoad, agent_programs
from burrstone.batching.sim.traffic.workload_types import Workload

SEEDS = (1, 2, 3)
DURATION_S = 1200.0
NUM_BLOCKS = 7500
_LOADS = {"near-saturation": (0.24, 0.6), "at-low-load": (0.1, 1.02)}


def run(context: Context) -> dict[str, Row]:
    """Mean job time under `program` over that under `fcfs`, the worst of three seeds."""
    rows = {}
    for index, (name, (rate, goal)) in enumerate(_LOADS.items()):
        ratios = []
        for place, seed in enumerate(SEEDS):
            context.progress((index + place / len(SEEDS)) / len(_LOADS), f"agents {name}, seed {seed}")
            load = AgentLoad(rate, turns_spread=0.4)
            workload = agent_programs(load, DURATION_S, seed)
            ratios.append(_mean_job_s("program", workload) / _mean_job_s("fcfs", workload))
        rows[f"8-job-time-{name}-over-fcfs"] = at_most(max(ratios), goal)
    return rows


def _mean_job_s(policy: str, workload: Workload) -> float:
    result = simulate(EngineSpec(policy=policy, num_blocks=NUM_BLOCKS, prefix_caching=True), workload)
    return float(program_seconds(workload, result.arrival_s, result.latencies(workload)).mean())
