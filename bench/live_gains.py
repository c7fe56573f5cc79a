"""What the policies bring on a live engine, beside stock order on the same requests: capacity under SLOs, a flooded
tenant's wait, agents' job time; and how well the simulator tells all this beforehand.

Runs of the two sides take turns, so that a slow minute of the machine hits both.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np

from burrstone.batching.core.step_log import read_log
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.sim.agents import AgentLoad, agent_programs
from burrstone.batching.sim.arrivals import LogNormal
from burrstone.batching.sim.calibrate import fit, samples_of
from burrstone.batching.sim.measures import program_seconds, quantiles
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets import Row, at_least, at_most
from burrstone.batching.sim.token_gaps import token_gaps
from burrstone.batching.sim.workload import Slo, Stream, generate
from burrstone.batching.sim.workload_types import Workload
from burrstone.bench.live_engine import BLOCK_TOKENS, ENGINE, LiveEngine
from burrstone.bench.live_loads import Say
from burrstone.bench.live_traffic import Served, serve
from burrstone.serving.engine.scheduler_options import CPU_STEP_MODEL, SchedulerOptions

SEEDS = (1, 2, 3)
_SHORT_IN, _SHORT_OUT = LogNormal(80, 0.6, most=300), LogNormal(16, 0.6, most=64)
_LONG_IN, _LONG_OUT = LogNormal(600, 0.4, most=900), LogNormal(4, 0.5, most=16)
_CHAT, _BATCH = Slo(ttft_s=1.0, tpot_s=0.15), Slo(e2e_s=30.0)
_ATTAINMENT = 0.95
# Requests a second between which capacity is looked for, in steps of 15 %.
_RATES, _BISECTIONS = (1.0, 9.3), 4
_WINDOW_S = 30.0


def capacity(engine: LiveEngine, say: Say) -> dict[str, Row]:
    """The highest rate at which 95 % of the chats and 95 % of the batch requests keep their SLO, `slo` over stock."""
    ratios = []
    for seed in SEEDS:
        low = {"slo": _RATES[0], "stock": _RATES[0]}
        high = {"slo": _RATES[1], "stock": _RATES[1]}
        for _ in range(_BISECTIONS):
            for side in ("slo", "stock"):
                rate = float(np.sqrt(low[side] * high[side]))
                attained = _attained(engine, side, chats_and_batch(rate, _WINDOW_S, seed))
                say(f"seed {seed}: {side} at {rate:.2f} requests/s keeps {100 * attained:.0f} % of its promises")
                (low if attained >= _ATTAINMENT else high)[side] = rate
        ratios.append(low["slo"] / low["stock"])
        say(f"seed {seed}: capacity {low['slo']:.2f} over {low['stock']:.2f} requests/s")
    return {"5-live-capacity-over-fcfs": at_least(statistics.median(ratios), 1.25)}


def chats_and_batch(rate: float, duration_s: float, seed: int) -> Workload:
    """Two thirds chats, one third long prompts that come in bursts."""
    chats = Stream(rate * 2 / 3, _SHORT_IN, _SHORT_OUT, slo=_CHAT)
    batch = Stream(rate / 3, _LONG_IN, _LONG_OUT, cv=5.0, slo=_BATCH, priority=1)
    return generate([chats, batch], duration_s, seed)


def _attained(engine: LiveEngine, side: str, workload: Workload) -> float:
    """The lower of the two kinds' shares of kept SLOs."""
    engine.use(None if side == "stock" else SchedulerOptions(side, model=CPU_STEP_MODEL))
    good = serve(engine, workload).found.good
    return min(float(good[workload.tenant == tenant].mean()) for tenant in (0, 1) if (workload.tenant == tenant).any())


def flooded(engine: LiveEngine, say: Say) -> dict[str, Row]:
    """A small tenant's p99 TTFT while another one floods the engine, `vtc` over stock, and what that costs all."""
    waits, stretches = [], []
    for seed in SEEDS:
        small, large = (Stream(rate, _SHORT_IN, _SHORT_OUT) for rate in (1.0, 12.0))
        workload = generate([small, large], 15.0, seed)
        runs = _in_turns(engine, "vtc", workload)
        ours, stock = (
            [quantiles(run.found.ttft_s[workload.tenant == 0])[-1] for run in runs[side]] for side in (True, False)
        )
        waits.append(statistics.mean(ours) / statistics.mean(stock))
        stretches.append(_mean_makespan_s(runs[True]) / _mean_makespan_s(runs[False]))
        say(f"flood, seed {seed}: p99 TTFT {waits[-1]:.3f} of stock, makespan {stretches[-1]:.3f}")
    return {
        "6-live-victim-p99-ttft-over-fcfs": at_most(statistics.median(waits), 1 / 3),
        "6-live-makespan-over-fcfs": at_most(statistics.median(stretches), 1.02),
    }


def _in_turns(engine: LiveEngine, policy: str, workload: Workload) -> dict[bool, list[Served]]:
    """Runs of ours (True) and of stock order, ABBA."""
    runs: dict[bool, list[Served]] = {True: [], False: []}
    for ours in (False, True, True, False):
        engine.use(SchedulerOptions(policy, model=CPU_STEP_MODEL) if ours else None)
        runs[ours].append(serve(engine, workload))
    return runs


def _mean_makespan_s(runs: list[Served]) -> float:
    return statistics.mean(run.makespan_s for run in runs)


def agents(engine: LiveEngine, say: Say) -> dict[str, Row]:
    """Mean job time of agent programs whose contexts do not all fit into the KV cache, `program` over stock."""
    ratios = []
    for seed in SEEDS:
        load = AgentLoad(
            programs_per_s=0.8, turns=8, turns_spread=0.25, system_tokens=64,
            task_tokens=LogNormal(500, 0.3, most=900), tool_tokens=LogNormal(70, 0.5, most=150),
            output_tokens=LogNormal(12, 0.5, most=40), tool_median_s=1.0, tool_sigma=0.5, block_tokens=BLOCK_TOKENS,
        )  # fmt: skip
        workload = agent_programs(load, 25.0, seed)
        times: dict[str, float] = {}
        for side in ("stock", "program"):
            engine.use(None if side == "stock" else SchedulerOptions(side, model=CPU_STEP_MODEL))
            served = serve(engine, workload)
            times[side] = float(program_seconds(workload, served.arrival_s, served.found).mean())
        ratios.append(times["program"] / times["stock"])
        say(f"agents, seed {seed}: {times['program']:.1f} s over {times['stock']:.1f} s a job")
    return {"8-live-job-time-over-fcfs": at_most(statistics.median(ratios), 0.85)}


def fidelity(engine: LiveEngine, num_blocks: int, say: Say) -> dict[str, Row]:
    """Calibrated on two runs, the simulator's error on others: TTFT and ITL at p50 and p99, and throughput.

    Each held-out run is made twice: how far the two are apart is the noise that no prediction can be better than.
    """
    model = _calibrated(engine, [_chats(0.5, 11), _chats(0.9, 12)], say)
    spec = EngineSpec(
        max_num_seqs=ENGINE.max_num_seqs, max_num_batched_tokens=ENGINE.max_num_batched_tokens,
        block_size=BLOCK_TOKENS, num_blocks=num_blocks - 1, prefix_caching=True, step_model=model,
    )  # fmt: skip
    full_rate = _full_rate(spec)
    say(f"the engine takes {full_rate:.1f} requests/s by the calibrated model")
    rows: dict[str, Row] = {}
    for share in (0.4, 0.8, 1.1):
        workload = _chats(share, 21, full_rate)
        engine.use(SchedulerOptions("fcfs"))
        one, other = serve(engine, workload), serve(engine, workload)
        told = _figures_of_simulation(spec, workload)
        for name, value in told.items():
            a, b = _figures(one)[name], _figures(other)[name]
            real, spread = (a + b) / 2, abs(a - b) / ((a + b) / 2)
            limit = 0.03 if name == "throughput" else max(0.05, 1.5 * spread)
            rows[f"2-{name}-error-at-{share}"] = at_most(abs(value / real - 1), limit)
            say(f"{share} of capacity: {name} {value:.4g} told, {real:.4g} measured, the two runs {spread:.1%} apart")
    return rows


def _chats(share: float, seed: int, full_rate: float = 8.0) -> Workload:
    return generate([Stream(share * full_rate, _SHORT_IN, _SHORT_OUT)], 40.0, seed)


def _calibrated(engine: LiveEngine, workloads: list[Workload], say: Say) -> StepModel:
    """Fitted to the step logs of these runs."""
    records = []
    with tempfile.TemporaryDirectory(prefix="burrstone-bench-") as folder:
        for number, workload in enumerate(workloads):
            say(f"calibration run {number + 1} of {len(workloads)}")
            log = Path(folder) / f"{number}.jsonl"
            engine.use(SchedulerOptions("fcfs", step_log=str(log)))
            serve(engine, workload)
            engine.scheduler.shutdown()
            records += list(read_log(log.read_text().splitlines())[1])
    return fit(samples_of(records)).model


def _full_rate(spec: EngineSpec) -> float:
    """Requests a second when the engine is never idle."""
    flood = _chats(10.0, 31)
    return len(flood) / simulate(spec, flood).makespan_s


def _figures(served: Served) -> dict[str, float]:
    found = served.found
    return _named(found.ttft_s, np.array(served.token_gaps_s), len(served.workload) / served.makespan_s)


def _figures_of_simulation(spec: EngineSpec, workload: Workload) -> dict[str, float]:
    result = simulate(spec, workload)
    ttft_s = result.first_token_s - result.arrival_s
    return _named(ttft_s, token_gaps(spec, workload), len(workload) / result.makespan_s)


def _named(ttft_s: np.ndarray, gaps_s: np.ndarray, throughput: float) -> dict[str, float]:
    values: dict[str, float] = {}
    measured: list[tuple[str, np.ndarray]] = [("ttft", ttft_s), ("itl", gaps_s)]
    for name, samples in measured:
        values[f"{name}-p50"], _, values[f"{name}-p99"] = quantiles(samples)
    return values | {"throughput": throughput}
