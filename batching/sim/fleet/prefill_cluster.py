"""Engines that only prefill, one prompt after another, behind a router: what routing policies are compared on.

An engine is busy until the last prompt sent to it is computed, so all that it does is known when it is sent. Its prefix
cache is the truth (least recently used blocks go first); the router's own index learns of it only by what it sends.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from burrstone.batching.core.hashing import SEED, fold
from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.rng import mix
from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL, StepModel
from burrstone.batching.core.step_time import prefill_seconds
from burrstone.batching.routing.choose import cached_tokens_at, choose, on_dispatch, on_first_token
from burrstone.batching.routing.memory import DECISION, NO_SESSION, RouterMemory, memory_of, new_memory, stacked
from burrstone.batching.routing.predict import attention_pairs
from burrstone.batching.routing.prefix_index import PrefixIndex, new_prefix_index, use_blocks
from burrstone.batching.routing.spec import RouterSpec
from burrstone.batching.routing.views import new_views
from burrstone.batching.sim.traffic.workload_types import Workload

_NONE = -1


# What is noted of a request.
ROUTE = np.dtype(
    [
        ("engine", np.int64),  # -1 if the run stopped before it
        ("ttft_s", np.float64),
        ("cached_tokens", np.int64),  # found in the engine's cache
        ("claimed_tokens", np.int64),  # those that the router had expected
        ("lead", np.int64),  # the arm that led (routing.watch)
    ]
)


@dataclass(frozen=True, slots=True)
class PrefillCluster:
    """The engines, and how well the routers see them."""

    num_engines: int = 16
    cache_tokens: int = 512 * 1024
    step_tokens: int = 8192
    model: StepModel = DEFAULT_STEP_MODEL
    view_delay_s: float = 0.0  # how old everything is that a router sees
    hit_gain: float = 1.0  # share of a hit's work that the engine is really spared
    num_routers: int = 1  # each taking its share by chance; none knows what the others have just sent


@dataclass(frozen=True, slots=True)
class PrefillRun:
    """What became of each request: [requests] of ROUTE, and the hash of all decisions in order."""

    routes: np.ndarray
    hash: int

    def hit_rate(self, workload: Workload) -> float:
        """Cached prompt tokens over all prompt tokens."""
        return float(self.routes["cached_tokens"].sum() / workload.input_tokens.sum())


def run_prefill(
    workload: Workload, spec: RouterSpec, cluster: PrefillCluster, *, speed: float = 1.0, give_up_s: float = np.inf
) -> PrefillRun:
    """Replay arrivals at `speed` times their pace. Stops once a tenth of the requests waited over give_up_s; those
    not reached then have an infinite TTFT."""
    prefixes = workload.prefixes
    block_tokens = prefixes.block_tokens if prefixes else 1
    blocks = max(1, cluster.cache_tokens // block_tokens) if prefixes else 1
    size, num_engines = len(workload), cluster.num_engines
    routes = np.zeros(size, dtype=ROUTE)
    routes["engine"], routes["ttft_s"] = _NONE, np.inf
    hash_ = _run(
        spec.record(),
        _new_routers(cluster, blocks),
        new_prefix_index(num_engines, blocks),
        _new_queues(num_engines, size),
        _aged_views(cluster),
        workload.arrival_s / speed,
        workload.input_tokens,
        prefixes.starts if prefixes else np.zeros(size + 1, np.int64),
        prefixes.hashes if prefixes else np.zeros(0, np.uint64),
        block_tokens,
        cluster.model.coefficients(),
        cluster.step_tokens,
        cluster.view_delay_s,
        cluster.hit_gain,
        give_up_s,
        routes,
    )
    return PrefillRun(routes, int(hash_))


def _new_routers(cluster: PrefillCluster, blocks: int) -> RouterMemory:
    starts = [number * cluster.num_engines // cluster.num_routers for number in range(cluster.num_routers)]
    return stacked([new_memory(cluster.num_engines, index_blocks=blocks, first_turn=start) for start in starts])


def _aged_views(cluster: PrefillCluster) -> np.ndarray:
    views = new_views(cluster.num_engines)
    views["age_s"] = cluster.view_delay_s
    return views


def sustainable_speed(
    workload: Workload,
    spec: RouterSpec,
    cluster: PrefillCluster,
    *,
    p90_ttft_s: float = 5.0,
    highest: float = 16.0,
    precision: float = 0.005,
) -> float:
    """The highest multiple of the trace's pace, up to `highest`, at which p90 of TTFT stays within p90_ttft_s."""
    low, high = 0.0, highest
    while high - low > precision * max(low, precision):
        speed = 0.5 * (low + high)
        run = run_prefill(workload, spec, cluster, speed=speed, give_up_s=p90_ttft_s)
        if np.mean(run.routes["ttft_s"] <= p90_ttft_s) >= 0.9:
            low = speed
        else:
            high = speed
    return low


class _Queues(NamedTuple):
    """Each engine's requests in order of dispatch, as a list through arrays with an entry a request."""

    start_s: np.ndarray  # [requests]
    finish_s: np.ndarray  # [requests]
    tokens: np.ndarray  # [requests] int64, to compute
    pairs: np.ndarray  # [requests], attention pairs of these
    before: np.ndarray  # [requests] int64, the engine's request before this one
    behind: np.ndarray  # [requests] int64
    unfinished: np.ndarray  # [engines] int64, first request that the router's view shows
    unanswered: np.ndarray  # [engines] int64, first request whose first token the router has not seen
    last: np.ndarray  # [engines] int64
    queued_tokens: np.ndarray  # [engines] int64, from `unfinished` on
    queued_pairs: np.ndarray  # [engines]


def _new_queues(num_engines: int, size: int) -> _Queues:
    return _Queues(
        np.zeros(size),
        np.zeros(size),
        np.zeros(size, np.int64),
        np.zeros(size),
        np.full(size, _NONE, np.int64),
        np.full(size, _NONE, np.int64),
        np.full(num_engines, _NONE, np.int64),
        np.full(num_engines, _NONE, np.int64),
        np.full(num_engines, _NONE, np.int64),
        np.zeros(num_engines, np.int64),
        np.zeros(num_engines),
    )


@kernel
def _append(queues: _Queues, engine: int, request: int, tokens: int, pairs: float) -> None:
    last = queues.last[engine]
    queues.before[request] = last
    if last != _NONE:
        queues.behind[last] = request
    queues.last[engine] = request
    if queues.unfinished[engine] == _NONE:
        queues.unfinished[engine] = request
        queues.queued_pairs[engine] = 0.0
    if queues.unanswered[engine] == _NONE:
        queues.unanswered[engine] = request
    queues.tokens[request], queues.pairs[request] = tokens, pairs
    queues.queued_tokens[engine] += tokens
    queues.queued_pairs[engine] += pairs


@kernel
def _look(queues: _Queues, views: np.ndarray, arrival_s: np.ndarray, seen_s: float) -> None:
    """Fill the views with what each engine had to do at seen_s."""
    for engine in range(views.shape[0]):
        head = queues.unfinished[engine]
        while head != _NONE and queues.finish_s[head] <= seen_s:
            queues.queued_tokens[engine] -= queues.tokens[head]
            queues.queued_pairs[engine] -= queues.pairs[head]
            head = queues.behind[head]
        queues.unfinished[engine] = head
        tokens, pairs = queues.queued_tokens[engine], queues.queued_pairs[engine]
        request = queues.last[engine] if head != _NONE else _NONE
        while request != _NONE and arrival_s[request] > seen_s:
            tokens -= queues.tokens[request]
            pairs -= queues.pairs[request]
            request = _NONE if request == head else queues.before[request]
        if head != _NONE and queues.start_s[head] < seen_s:
            done = (seen_s - queues.start_s[head]) / (queues.finish_s[head] - queues.start_s[head])
            tokens -= int(done * queues.tokens[head])
            pairs -= done * queues.pairs[head]
        views[engine]["queued_prefill_tokens"] = tokens
        views[engine]["queued_attention_pairs"] = max(pairs, 0.0)


@kernel
def _run(
    policy: np.void,
    routers: RouterMemory,
    caches: PrefixIndex,
    queues: _Queues,
    views: np.ndarray,
    arrival_s: np.ndarray,
    input_tokens: np.ndarray,
    starts: np.ndarray,
    hashes: np.ndarray,
    block_tokens: int,
    model: np.ndarray,
    step_tokens: int,
    delay_s: float,
    hit_gain: float,
    give_up_s: float,
    routes: np.ndarray,
) -> np.uint64:
    """The loop. routes: [requests] of ROUTE, filled; returns the hash of all decisions."""
    size, num_engines = arrival_s.shape[0], views.shape[0]
    free_s = np.zeros(num_engines)
    decisions = np.zeros(size, DECISION)
    late, hash_ = 0, SEED
    for request in range(size):
        now_s, prompt = arrival_s[request], input_tokens[request]
        blocks = hashes[starts[request] : starts[request + 1]]
        blocks = blocks[: min(blocks.shape[0], prompt // block_tokens)]
        _answer(policy, routers, queues, decisions, routes, now_s)
        _look(queues, views, arrival_s, now_s - delay_s)
        memory = memory_of(routers, _router_of(request, routers.counters.shape[0]))
        decision, route = decisions[request], routes[request]
        engine = choose(
            policy, memory, views, prompt, NO_SESSION, blocks, block_tokens, now_s, model, step_tokens, decision
        )
        on_dispatch(memory, decision, prompt, blocks, now_s)
        hash_ = fold(hash_, np.int64(decision["hash"]))
        route["engine"], route["lead"] = engine, memory.counters[0]["lead"]
        route["claimed_tokens"] = decision["claimed_tokens"]
        # What is asked for later cannot change the cache that this prompt meets: the engine is first come, first served.
        cached = cached_tokens_at(caches, engine, prompt, blocks, block_tokens)
        use_blocks(caches, engine, blocks)
        route["cached_tokens"] = cached
        saved = int(cached * hit_gain)
        _append(queues, engine, request, prompt - saved, attention_pairs(prompt, saved))
        queues.start_s[request] = max(now_s, free_s[engine])
        free_s[engine] = queues.start_s[request] + prefill_seconds(model, saved, prompt, step_tokens)
        queues.finish_s[request] = free_s[engine]
        route["ttft_s"] = free_s[engine] - now_s
        late += route["ttft_s"] > give_up_s
        if late > 0.1 * size + 1:
            break
    return hash_


@kernel
def _router_of(request: int, num_routers: int) -> int:
    return int(np.int64(mix(np.uint64(request)) % np.uint64(num_routers)))


@kernel
def _answer(
    policy: np.void,
    routers: RouterMemory,
    queues: _Queues,
    decisions: np.ndarray,
    routes: np.ndarray,
    now_s: float,
) -> None:
    """Tell the routers of every first token until now."""
    for engine in range(queues.unanswered.shape[0]):
        request = queues.unanswered[engine]
        while request != _NONE and queues.finish_s[request] <= now_s:
            memory = memory_of(routers, _router_of(request, routers.counters.shape[0]))
            route = routes[request]
            on_first_token(policy, memory, decisions[request], route["ttft_s"], route["cached_tokens"])
            request = queues.behind[request]
        queues.unanswered[engine] = request
