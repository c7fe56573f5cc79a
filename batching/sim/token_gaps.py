"""Inter-token latencies of a simulated engine: it is stopped after every step to see who got a token."""

import numpy as np

from burrstone.batching.sim.drive import Run, drain, next_event, next_event_s
from burrstone.batching.sim.macro import advance
from burrstone.batching.sim.run import check_fits, run_of, world_of
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Floats, Workload
from burrstone.batching.sim.world import World


def token_gaps(spec: EngineSpec, workload: Workload) -> Floats:
    """Seconds between the tokens of a request, all requests together. Takes some 0.1 ms a step."""
    check_fits(spec, workload)
    world, run = world_of(spec, workload), run_of(workload, spec.block_size)
    last_s = np.zeros(len(world.requests))
    gaps: list[Floats] = [np.empty(0)]
    engine = world.engines[0]
    while _go_on(world, run):
        before = world.requests["output_tokens"].copy()
        # A moment later than now: one step, and no more.
        advance(world, 0, float(np.nextafter(engine["now_s"], np.inf)), False)
        after = world.requests["output_tokens"]
        served = np.flatnonzero(after > before)
        followed = served[before[served] > 0]
        gaps.append(engine["now_s"] - last_s[followed])
        last_s[served] = engine["now_s"]
    return np.concatenate(gaps)


def _go_on(world: World, run: Run) -> bool:
    """Let come and go whoever is due; whether there is a step to take then."""
    engine = world.engines[0]
    while True:
        if engine["num_ended"] > 0:
            drain(world, run, 0)
        next_s = next_event_s(run)
        busy = engine["num_waiting"] + engine["num_running"] > 0
        if busy and engine["now_s"] < next_s:
            return True
        if next_s == np.inf:
            return busy
        next_event(world, run)
