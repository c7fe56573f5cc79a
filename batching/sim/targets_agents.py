"""Target 8: how long agent programs take when whole programs are served in order and their KV caches kept between calls.

Programs of six to fourteen calls with tools at work between them, on one 8B engine with room for 120,000 tokens of KV.
Near saturation is 0.24 programs a second: there, stock vLLM's engine is overloaded and ours is about to be.
"""

import numpy as np

from burrstone.batching.sim.agents import AgentLoad, agent_programs
from burrstone.batching.sim.run import Result, simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets import Context, Row, at_most
from burrstone.batching.sim.workload_types import Workload

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
            ours, stock = (
                float(_job_times(workload, _served(policy, workload)).mean()) for policy in ("program", "fcfs")
            )
            ratios.append(ours / stock)
        rows[f"8-job-time-{name}-over-fcfs"] = at_most(max(ratios), goal)
    return rows


def _served(policy: str, workload: Workload) -> Result:
    return simulate(EngineSpec(policy=policy, num_blocks=NUM_BLOCKS, prefix_caching=True), workload)


def _job_times(workload: Workload, result: Result) -> np.ndarray:
    """Seconds from a program's first call to its last token, [programs]."""
    programs = int(workload.program.max()) + 1
    begins_s, ends_s = np.full(programs, np.inf), np.zeros(programs)
    np.minimum.at(begins_s, workload.program, result.arrival_s)
    np.maximum.at(ends_s, workload.program, result.ended_s)
    return ends_s - begins_s
