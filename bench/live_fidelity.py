"""How well the simulator, calibrated on two runs of a live engine, tells others beforehand."""

import statistics
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from burrstone.batching.core.step_log import read_log
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.sim.fit.steps import fit, samples_of
from burrstone.batching.sim.measures import quantiles
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets.judge import Row, at_most
from burrstone.batching.sim.token_gaps import token_gaps
from burrstone.batching.sim.traffic.workload import Stream, generate
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.live_engine import BLOCK_TOKENS, ENGINE, LiveEngine
from burrstone.bench.live_loads import Say
from burrstone.bench.live_traffic import SHORT_IN, SHORT_OUT, Served, serve, serve_by
from burrstone.serving.engine.scheduling.options import SchedulerOptions

_SEEDS = (21, 22, 23)
_SHARES = (0.4, 0.8, 1.1)
_WINDOW_S = 30.0
# More requests at once than ever run together, for what the engine takes when it is never idle.
_FLOOD_REQUESTS = 300


def fidelity(engine: LiveEngine, num_blocks: int, say: Say) -> dict[str, Row]:
    """The simulator's error on held-out runs: TTFT and ITL at p50 and p99, and throughput; the median of three seeds.

    Each held-out run is made twice: how far the two are apart is the noise that no prediction can be better than.
    """
    flood = _chats(_FLOOD_REQUESTS / _WINDOW_S, 31)
    full_rate = len(flood) / serve_by(engine, "fcfs", _all_at_once(flood)).makespan_s
    say(f"the engine takes {full_rate:.1f} requests/s")
    model = _calibrated(engine, [_chats(0.6 * full_rate, 11), _chats(1.2 * full_rate, 12)], say)
    spec = EngineSpec(
        max_num_seqs=ENGINE.max_num_seqs, max_num_batched_tokens=ENGINE.max_num_batched_tokens,
        block_size=BLOCK_TOKENS, num_blocks=num_blocks - 1, prefix_caching=True, step_model=model,
    )  # fmt: skip
    rows: dict[str, Row] = {}
    for share in _SHARES:
        errors: dict[str, list[float]] = defaultdict(list)
        spreads: dict[str, list[float]] = defaultdict(list)
        for seed in _SEEDS:
            workload = _chats(share * full_rate, seed)
            one, other = _figures(serve_by(engine, "fcfs", workload)), _figures(serve_by(engine, "fcfs", workload))
            for name, told in _figures_of_simulation(spec, workload).items():
                real = (one[name] + other[name]) / 2
                errors[name].append(abs(told / real - 1))
                spreads[name].append(abs(one[name] - other[name]) / real)
                say(
                    f"{share} of capacity, seed {seed}: {name} {told:.4g} told, {real:.4g} measured, "
                    f"the two runs {spreads[name][-1]:.1%} apart"
                )
        for name, values in errors.items():
            limit = 0.03 if name == "throughput" else max(0.05, 1.5 * statistics.median(spreads[name]))
            rows[f"2-{name}-error-at-{share}"] = at_most(statistics.median(values), limit)
    return rows


def _chats(rate: float, seed: int) -> Workload:
    return generate([Stream(rate, SHORT_IN, SHORT_OUT)], _WINDOW_S, seed)


def _all_at_once(workload: Workload) -> Workload:
    return replace(workload, arrival_s=np.zeros(len(workload)))


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
