"""Target 7: sending requests where their prefix is cached pays on Mooncake's trace, and costs nothing where it cannot.

16 engines that only prefill an 8B model, each with a prefix cache of 512k tokens; a speed is sustained if p90 of TTFT
is within 5 s at that multiple of the trace's pace. The worst of three seeds counts.
"""

from collections.abc import Callable
from dataclasses import replace

from burrstone.batching.routing.spec import router_policy
from burrstone.batching.sim.fleet.prefill_cluster import PrefillCluster, run_prefill, sustainable_speed
from burrstone.batching.sim.targets.judge import Context, Row, at_least
from burrstone.batching.sim.traffic.traces import read_azure, read_mooncake
from burrstone.batching.sim.traffic.workload_types import Workload

_SEEDS = (0, 1, 2)
_FRESH = PrefillCluster()
_STALE = replace(_FRESH, view_delay_s=1.0)
_FOOLED = replace(_FRESH, hit_gain=0.0)
# A few chats of Azure's weigh what one of Mooncake's prompts does.
_HIGHEST_MOONCAKE, _HIGHEST_AZURE = 16.0, 128.0


def run(context: Context) -> dict[str, Row]:
    """Compare min-ttft with least-load and round-robin."""
    mooncake = context.trace("mooncake_conversation_trace.jsonl")
    azure = read_azure(context.trace("azure_llm_2023_conv.csv"))
    gains: dict[str, list[float]] = {"speed": [], "hits": [], "stale": [], "fooled": [], "no-reuse": []}
    for number, seed in enumerate(_SEEDS):
        context.progress(number / len(_SEEDS), f"routing, seed {seed}")
        workload = read_mooncake(mooncake, seed=seed)
        speed = _speeds(workload, seed, _HIGHEST_MOONCAKE)
        least_load = speed("least-load", _FRESH)
        gains["speed"].append(speed("min-ttft", _FRESH) / least_load)
        # Against least-load with fresh views: what a real gateway sees against the ideal.
        gains["stale"].append(speed("min-ttft", _STALE) / least_load)
        gains["fooled"].append(speed("min-ttft", _FOOLED) / speed("least-load", _FOOLED))
        hits = {
            name: run_prefill(workload, router_policy(name, seed=seed), _FRESH, speed=least_load).hit_rate(workload)
            for name in ("min-ttft", "round-robin")
        }
        gains["hits"].append(hits["min-ttft"] / hits["round-robin"])
        chats = _speeds(azure, seed, _HIGHEST_AZURE)
        gains["no-reuse"].append(chats("min-ttft", _FRESH) / chats("least-load", _FRESH))
    goals = {"speed": 1.15, "hits": 2.5, "stale": 1.05, "fooled": 0.95, "no-reuse": 0.95}
    return {f"7-routing-{name}": at_least(min(gains[name]), goal) for name, goal in goals.items()}


def _speeds(workload: Workload, seed: int, highest: float) -> Callable[[str, PrefillCluster], float]:
    def speed(name: str, cluster: PrefillCluster) -> float:
        return sustainable_speed(workload, router_policy(name, seed=seed), cluster, highest=highest)

    return speed
