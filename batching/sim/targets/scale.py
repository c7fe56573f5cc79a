"""Target 4: a fleet of 10,000 engines (eight accelerators each) for an hour at 30,000 requests a second, on one core.

`run` takes a stretch of that hour and tells what the whole costs at that pace; `whole_hour` takes all of it:

    python -c "from burrstone.batching.sim.targets.scale import whole_hour; print(whole_hour())"
"""

import resource
import time

import numpy as np

from burrstone.batching.routing.spec import router_policy
from burrstone.batching.sim.fleet.fleet import FleetResult, FleetSpec, Stream, simulate_fleet
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets.judge import Context, Row, at_least, at_most
from burrstone.batching.sim.traffic.workload import INTERACTIVE, chat_and_code, generate
from burrstone.batching.sim.traffic.workload import Stream as Tenant

NUM_ENGINES = 10_000
RATE = 30_000.0
HOUR_S = 3600.0
_ENGINE = EngineSpec(max_num_seqs=64, num_blocks=4000)
_STRETCHES_S = (20.0, 60.0)
_POLICIES = ("fcfs", "priority", "slo", "vtc", "sjf-rank", "vtc > slo")


def run(context: Context) -> dict[str, Row]:
    """The pace is that of the second stretch less the first, which holds the start: empty engines and a cold cache."""
    context.progress(0.0, "compiling")
    _served(1, 1.0, 1.0)
    cpu_s = []
    for place, stretch_s in enumerate(_STRETCHES_S):
        context.progress(0.1 + 0.2 * place, f"10,000 engines, {stretch_s:g} s of the hour")
        before_s = time.process_time()
        result = _served(NUM_ENGINES, RATE, stretch_s)
        cpu_s.append(time.process_time() - before_s)
    pace = (cpu_s[1] - cpu_s[0]) / (_STRETCHES_S[1] - _STRETCHES_S[0])
    context.progress(0.8, "macro against exact")
    return {
        "4-cpu-minutes-of-the-hour": at_most((cpu_s[0] + pace * (HOUR_S - _STRETCHES_S[0])) / 60.0, 15.0),
        "4-memory-gib": at_most(_peak_gib(), 4.0),
        "4-requests-kept-within-slo": at_least(result.attainment, 0.95),
        "4-macro-minus-exact-s": at_most(_largest_difference_s(), 1e-6),
    }


def whole_hour() -> dict[str, float]:
    """All of it: CPU minutes, peak memory and what came out."""
    before_s = time.process_time()
    result = _served(NUM_ENGINES, RATE, HOUR_S)
    return {
        "cpu_minutes": (time.process_time() - before_s) / 60.0,
        "memory_gib": _peak_gib(),
        "requests": float(result.tallies["offered"].sum()),
        "attainment": result.attainment,
        "ttft_p99_s": result.quantile_s(0, 0.99),
    }


def _served(engines: int, rate: float, duration_s: float) -> FleetResult:
    """Chats like Azure's under `slo`, sent to the less loaded of two engines."""
    chats = generate([Tenant(100.0, slo=INTERACTIVE)], 200.0, 1)
    spec = FleetSpec(
        EngineSpec(policy="slo", max_num_seqs=_ENGINE.max_num_seqs, num_blocks=_ENGINE.num_blocks),
        engines,
        router_policy("p2c"),
    )
    return simulate_fleet(spec, Stream(chats, rate, duration_s))


def _largest_difference_s() -> float:
    """Between the two modes, over all requests of a heavy mix and all times, under every policy."""
    worst = 0.0
    for policy in _POLICIES:
        workload = chat_and_code(6.0, 60.0, 5)
        spec = EngineSpec(policy=policy, max_num_seqs=32, num_blocks=1500)
        exact, macro = simulate(spec, workload, "exact"), simulate(spec, workload, "macro")
        for name in ("scheduled_s", "first_token_s", "ended_s"):
            worst = max(worst, float(np.abs(getattr(exact, name) - getattr(macro, name)).max()))
    return worst


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
