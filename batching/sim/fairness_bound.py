"""Does `vtc` keep its promise? Random loads on a small engine, and the widest gap in service between backlogged tenants.

The bound is the one of the VTC paper (OSDI'24): while two tenants both have requests waiting, the service that they get
over any stretch of time differs by at most 2 * max(prompt_weight * longest prompt, output_weight * tokens of a batch).
"""

from dataclasses import dataclass, field

import numpy as np

from burrstone.batching.core.rng import Rng
from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.policies.engine_policy import Arrival, EnginePolicy
from burrstone.batching.policies.spec import PolicySpec

_MAX_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Load:
    """A random load: requests as (step of arrival, tenant, prompt, output), and the engine that they come to."""

    requests: list[tuple[int, int, int, int]]
    weights: tuple[float, ...]  # one a tenant
    num_slots: int
    batch_tokens: int

    @property
    def num_tenants(self) -> int:
        return len(self.weights)


@dataclass(slots=True)
class _Pair:
    """Extremes of the difference in service since both tenants have been backlogged."""

    low: float = field(default=np.inf)
    high: float = field(default=-np.inf)


def random_load(seed: int) -> Load:
    """Two to four tenants with lengths and weights of their own. Tenant 0 always asks for more than there is; tenant 1,
    in every second load, keeps one small request alive for long and then comes with a burst of its own."""
    rng = Rng(seed)
    num_tenants = 2 + rng.below(3)
    num_slots = 2 + rng.below(4)
    longest = [(8 + rng.below(60), 2 + rng.below(20)) for _ in range(num_tenants)]
    trickles = rng.below(2) == 1
    requests = []
    for tenant, (prompt, output) in enumerate(longest):
        count = 10 + rng.below(10) + (30 if tenant == 0 else 0) + (100 if tenant < 2 and trickles else 0)
        spread = 1 if tenant == 0 else 1 + rng.below(80)
        start = 0
        if tenant == 1 and trickles:
            requests += [(step, tenant, 1, 3) for step in range(0, 300, 2)]
            start = 300
        requests += [
            (start + rng.below(spread), tenant, 1 + rng.below(prompt), 1 + rng.below(output)) for _ in range(count)
        ]
    weights = tuple((1.0, 1.0, 2.0, 0.5)[rng.below(4)] for _ in range(num_tenants))
    return Load(sorted(requests), weights, num_slots, 250 + rng.below(1000))


def widest_gap(load: Load, policy: str = "vtc") -> tuple[float, float]:
    """(widest gap between two backlogged tenants in weighted tokens of service per unit of weight, the bound)."""
    spec = PolicySpec.parse(policy)
    knobs = spec.knobs
    engine = EnginePolicy(spec, DEFAULT_STEP_MODEL, max_step_tokens=4096, block_tokens=1)
    service = np.zeros(load.num_tenants)
    pairs: dict[tuple[int, int], _Pair] = {}
    waiting: list[int] = []
    running: list[int] = []
    coming = list(load.requests)
    widest = 0.0
    for step in range(_MAX_STEPS):
        while coming and coming[0][0] <= step:
            _, tenant, prompt, output = coming.pop(0)
            waiting.append(engine.add(Arrival(prompt, output, tenant, load.weights[tenant]), float(step)))
        if not (coming or waiting or running):
            break
        widest = max(widest, _watch(pairs, service, {int(engine.requests[row]["tenant"]) for row in waiting}))
        order = np.array(waiting, dtype=np.int64)
        engine.plan(
            order,
            np.array(running, dtype=np.int64),
            free_slots=load.num_slots - len(running),
            free_blocks=1 << 30,
            now_s=float(step),
        )
        waiting = order.tolist()
        held = sum(_tokens(engine, row) for row in running)
        while waiting and len(running) < load.num_slots and held + _tokens(engine, waiting[0]) <= load.batch_tokens:
            row = waiting.pop(0)
            running.append(row)
            held += _tokens(engine, row)
            engine.admitted(row, 0)
            tenant = engine.requests[row]["tenant"]
            service[tenant] += knobs.prompt_weight * engine.requests[row]["prompt_tokens"] / load.weights[tenant]
            # Served by itself, each admission counts: the gap is watched between any two of them.
            widest = max(widest, _watch(pairs, service, {int(engine.requests[left]["tenant"]) for left in waiting}))
        for row in list(running):
            engine.served(row, 1, float(step + 1))
            tenant = engine.requests[row]["tenant"]
            service[tenant] += knobs.output_weight / load.weights[tenant]
            if engine.requests[row]["output_tokens"] == engine.requests[row]["max_tokens"]:
                running.remove(row)
                engine.remove(row)
    longest_prompt = max(prompt for _, _, prompt, _ in load.requests)
    longest = max(prompt + output for _, _, prompt, output in load.requests)
    # What a batch can hold of tokens: by the KV cache, and by its slots.
    batch_tokens = min(load.batch_tokens, load.num_slots * longest)
    bound = 2 * max(knobs.prompt_weight * longest_prompt, knobs.output_weight * batch_tokens)
    return widest, bound / min(load.weights)


def _tokens(engine: EnginePolicy, row: int) -> int:
    request = engine.requests[row]
    return int(request["prompt_tokens"] + request["max_tokens"])


def _watch(pairs: dict[tuple[int, int], _Pair], service: np.ndarray, backlogged: set[int]) -> float:
    """Note the differences between backlogged tenants; forget pairs of which one is not. Returns the widest gap."""
    for pair in [pair for pair in pairs if not backlogged.issuperset(pair)]:
        del pairs[pair]
    widest = 0.0
    for one in backlogged:
        for other in backlogged:
            if one < other:
                seen = pairs.setdefault((one, other), _Pair())
                gap = float(service[one] - service[other])
                seen.low, seen.high = min(seen.low, gap), max(seen.high, gap)
                widest = max(widest, seen.high - seen.low)
    return widest
