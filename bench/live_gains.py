"""What the policies bring on a live engine, beside stock order on the same requests: capacity under SLOs, a flooded
tenant's wait, agents' job time.

Runs of the two sides take turns, and the side that goes first changes, so that a slow minute of the machine hits both.
"""

import statistics
from dataclasses import replace

from burrstone.batching.sim.measures import program_seconds, quantiles
from burrstone.batching.sim.targets.judge import Row, at_least, at_most
from burrstone.batching.sim.traffic.agents import AgentLoad, agent_programs
from burrstone.batching.sim.traffic.arrivals import LogNormal
from burrstone.batching.sim.traffic.workload import Slo, Stream, generate
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.bench.live_engine import BLOCK_TOKENS, LiveEngine
from burrstone.bench.live_loads import Say
from burrstone.bench.live_traffic import SHORT_IN, SHORT_OUT, Served, serve_by

SEEDS = (1, 2, 3)
_LONG_IN, _LONG_OUT = LogNormal(600, 0.4, most=900), LogNormal(4, 0.5, most=16)
_CHAT, _BATCH = Slo(ttft_s=1.5, tpot_s=0.3), Slo(e2e_s=30.0)
_ATTAINMENT = 0.95
# Requests a second among which capacity is looked for, 12 % apart: fifteen rates, so four runs settle which.
_RATES = tuple(1.0 * 1.12**step for step in range(15))
_REQUESTS = 120
_TURNS = (("stock", "ours"), ("ours", "stock"))


def capacity(engine: LiveEngine, say: Say) -> dict[str, Row]:
    """The highest rate at which 95 % of the chats and 95 % of the batch requests keep their SLO, `slo` over stock.

    Each side's capacity is a rate at which it was seen to keep its promises; at the next one, 12 % higher, it was seen
    to break them, unless it keeps them at all. The traffic is finite: some batch work may end after the last arrival.
    """
    ratios = []
    for turn, seed in enumerate(SEEDS):
        sustained = {"ours": 0, "stock": 0}  # rates from the lowest that are known to be kept
        failed = {"ours": len(_RATES) + 1, "stock": len(_RATES) + 1}
        while any(failed[side] - sustained[side] > 1 for side in sustained):
            for side in _TURNS[turn % 2]:
                middle = (sustained[side] + failed[side]) // 2
                attained = _attained(engine, _policy("slo", side), chats_and_batch(_RATES[middle - 1], seed))
                say(f"seed {seed}: {side} at {_RATES[middle - 1]:.2f} requests/s keeps {attained:.1%} of its promises")
                (sustained if attained >= _ATTAINMENT else failed)[side] = middle
        # Where stock fails at the lowest rate too, that one bounds the ratio from below.
        ours, stock = (_RATES[max(sustained[side], 1) - 1] for side in ("ours", "stock"))
        ratios.append(ours / stock if sustained["ours"] else 0.0)
        say(f"seed {seed}: capacity {ours:.2f} over {stock:.2f} requests/s")
    return {"5-live-capacity-over-fcfs": at_least(statistics.median(ratios), 1.25)}


def chats_and_batch(rate: float, seed: int) -> Workload:
    """Two thirds chats, one third long prompts. At every rate the same requests in the same order, only closer."""
    chats = Stream(2 / 3, SHORT_IN, SHORT_OUT, slo=_CHAT)
    batch = Stream(1 / 3, _LONG_IN, _LONG_OUT, slo=_BATCH, priority=1)
    workload = generate([chats, batch], _REQUESTS, seed)
    return replace(workload, arrival_s=workload.arrival_s / rate)


def _attained(engine: LiveEngine, policy: str | None, workload: Workload) -> float:
    """The lower of the two kinds' shares of kept SLOs."""
    good = serve_by(engine, policy, workload).found.good
    return min(float(good[workload.tenant == tenant].mean()) for tenant in (0, 1) if (workload.tenant == tenant).any())


def flooded(engine: LiveEngine, say: Say) -> dict[str, Row]:
    """A small tenant's p99 TTFT while another one floods the engine, `vtc` over stock, and what that costs all."""
    waits, stretches = [], []
    for seed in SEEDS:
        small, large = (Stream(rate, SHORT_IN, SHORT_OUT) for rate in (1.0, 12.0))
        workload = generate([small, large], 15.0, seed)
        runs = _in_turns(engine, "vtc", workload)
        ours, stock = (
            [quantiles(run.found.ttft_s[workload.tenant == 0])[-1] for run in runs[side]] for side in ("ours", "stock")
        )
        waits.append(statistics.mean(ours) / statistics.mean(stock))
        stretches.append(_mean_makespan_s(runs["ours"]) / _mean_makespan_s(runs["stock"]))
        say(f"flood, seed {seed}: p99 TTFT {waits[-1]:.3f} of stock, makespan {stretches[-1]:.3f}")
    return {
        "6-live-victim-p99-ttft-over-fcfs": at_most(statistics.median(waits), 1 / 3),
        "6-live-makespan-over-fcfs": at_most(statistics.median(stretches), 1.02),
    }


def _in_turns(engine: LiveEngine, policy: str, workload: Workload) -> dict[str, list[Served]]:
    """Runs of ours and of stock order, ABBA."""
    runs: dict[str, list[Served]] = {"ours": [], "stock": []}
    for side in ("stock", "ours", "ours", "stock"):
        runs[side].append(serve_by(engine, _policy(policy, side), workload))
    return runs


def _policy(ours: str, side: str) -> str | None:
    return ours if side == "ours" else None


def _mean_makespan_s(runs: list[Served]) -> float:
    return statistics.mean(run.makespan_s for run in runs)


def agents(engine: LiveEngine, say: Say) -> dict[str, Row]:
    """Mean job time of agent programs whose contexts do not all fit into the KV cache, `program` over stock."""
    ratios = []
    for turn, seed in enumerate(SEEDS):
        load = AgentLoad(
            programs_per_s=0.8, turns=8, turns_spread=0.25, system_tokens=64,
            task_tokens=LogNormal(500, 0.3, most=900), tool_tokens=LogNormal(70, 0.5, most=150),
            output_tokens=LogNormal(12, 0.5, most=40), tool_median_s=1.0, tool_sigma=0.5, block_tokens=BLOCK_TOKENS,
        )  # fmt: skip
        workload = agent_programs(load, 25.0, seed)
        times: dict[str, float] = {}
        for side in _TURNS[turn % 2]:
            served = serve_by(engine, _policy("program", side), workload)
            times[side] = float(program_seconds(workload, served.arrival_s, served.found).mean())
        ratios.append(times["ours"] / times["stock"])
        say(f"agents, seed {seed}: {times['ours']:.1f} s over {times['stock']:.1f} s a job")
    return {"8-live-job-time-over-fcfs": at_most(statistics.median(ratios), 0.85)}
