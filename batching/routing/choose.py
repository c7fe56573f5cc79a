"""The one decision function of routers: which engine gets this request. Called by the gateway and by the simulator."""

import numpy as np

from burrstone.batching.core.hashing import SEED, fold, fold_float
from burrstone.batching.core.kernel import kernel, large
from burrstone.batching.routing.dispatches import drop_seen, note_dispatch
from burrstone.batching.routing.gain import hit_trust, learn_gain
from burrstone.batching.routing.memory import NO_SESSION, RouterMemory
from burrstone.batching.routing.predict import attention_pairs, backlog_s, prefill_s
from burrstone.batching.routing.prefix_index import PrefixIndex, cached_blocks, forget_engine, use_blocks
from burrstone.batching.routing.probes import NO_ENGINE, candidate_engines, live_from, p2c_probes, session_engine
from burrstone.batching.routing.spec import LEAST_LOAD, MIN_TTFT, P2C, ROUND_ROBIN, SESSION
from burrstone.batching.routing.watch import AFFINITY, LOAD, NUM_ARMS, TURN, deciding_arm, expect, observe


@large
@kernel
def choose(
    policy: np.void,
    memory: RouterMemory,
    views: np.ndarray,
    prompt_tokens: int,
    session: int,
    hashes: np.ndarray,
    block_tokens: int,
    now_s: float,
    model: np.ndarray,
    step_tokens: int,
    decision: np.void,
) -> int:
    """The engine for a request, NO_ENGINE if none is alive; `decision`, a record of DECISION, is filled.

    views: [engines] of ENGINE_VIEW; hashes: [blocks] of the prompt's full blocks; step_tokens: an engine's
    max_num_batched_tokens. Follow it with `on_dispatch`.
    """
    counters = memory.counters
    first = live_from(views, counters[0]["turn"] % views.shape[0])
    number = np.uint64(counters[0]["decisions"])
    counters[0]["decisions"] += 1
    decision["engine"], decision["agreeing"] = first, 0
    decision["hash"] = fold(SEED, np.int64(first))
    if first == NO_ENGINE:
        return NO_ENGINE
    counters[0]["turn"] = (first + 1) % views.shape[0]
    kind = policy["policy"]
    if kind == P2C or (kind == SESSION and session == NO_SESSION):
        one, other = p2c_probes(policy["seed"], number, views)
        load_s = backlog_s(views, memory.sent, one, now_s, model, step_tokens)
        less = backlog_s(views, memory.sent, other, now_s, model, step_tokens) < load_s
        decision["engine"] = other if less else one
    elif kind == SESSION:
        decision["engine"] = session_engine(policy["seed"], session, views)
    elif kind != ROUND_ROBIN:
        candidates = candidate_engines(policy, views, first, hashes, number)
        decision["engine"], decision["agreeing"] = _best(
            policy, memory, views, candidates, first, prompt_tokens, hashes, block_tokens, now_s, model, step_tokens
        )
    _predict(policy, memory, views, prompt_tokens, hashes, block_tokens, now_s, model, step_tokens, decision)
    return decision["engine"]


@kernel
def on_dispatch(memory: RouterMemory, decision: np.void, prompt_tokens: int, hashes: np.ndarray, now_s: float) -> None:
    """The request goes to the engine that `choose` named."""
    engine, claimed = decision["engine"], decision["claimed_tokens"]
    note_dispatch(memory.sent, engine, now_s, prompt_tokens - claimed, attention_pairs(prompt_tokens, claimed))
    use_blocks(memory.prefixes, engine, hashes)


@kernel
def on_first_token(
    policy: np.void, memory: RouterMemory, decision: np.void, observed_s: float, cached_tokens: int
) -> None:
    """The engine answered: observed_s after the request was routed, with so many prompt tokens found in its cache."""
    if policy["policy"] != MIN_TTFT:
        return
    observe(policy, memory.counters, memory.arms, decision["agreeing"], decision["predicted_s"], observed_s)
    learn_gain(
        memory.gain,
        decision["waiting_s"],
        decision["whole_s"],
        decision["spared_s"],
        decision["claimed_tokens"],
        cached_tokens,
        observed_s,
    )


@kernel
def on_engine_lost(memory: RouterMemory, engine: int) -> None:
    """The engine died or started anew: its cache and its queue are empty."""
    forget_engine(memory.prefixes, engine)
    drop_seen(memory.sent, engine, np.inf)


@kernel
def cached_tokens_at(index: PrefixIndex, engine: int, prompt_tokens: int, hashes: np.ndarray, block_tokens: int) -> int:
    """Prompt tokens that the index holds to be cached; the last one is always computed."""
    return min(cached_blocks(index, engine, hashes) * block_tokens, prompt_tokens - 1)


@kernel
def _predict(
    policy: np.void,
    memory: RouterMemory,
    views: np.ndarray,
    prompt_tokens: int,
    hashes: np.ndarray,
    block_tokens: int,
    now_s: float,
    model: np.ndarray,
    step_tokens: int,
    decision: np.void,
) -> None:
    engine = decision["engine"]
    claimed = cached_tokens_at(memory.prefixes, engine, prompt_tokens, hashes, block_tokens)
    trusted = int(claimed * hit_trust(memory.gain)) if policy["watch"] != 0 else claimed
    waiting_s = backlog_s(views, memory.sent, engine, now_s, model, step_tokens)
    whole_s = prefill_s(views, engine, prompt_tokens, 0, model, step_tokens)
    decision["claimed_tokens"], decision["waiting_s"], decision["whole_s"] = claimed, waiting_s, whole_s
    decision["spared_s"] = whole_s - prefill_s(views, engine, prompt_tokens, claimed, model, step_tokens)
    predicted_s = waiting_s + prefill_s(views, engine, prompt_tokens, trusted, model, step_tokens)
    decision["predicted_s"] = predicted_s
    hash_ = fold(fold(fold(SEED, np.int64(engine)), np.int64(claimed)), np.int64(decision["agreeing"]))
    decision["hash"] = fold_float(hash_, predicted_s)


@kernel
def _best(
    policy: np.void,
    memory: RouterMemory,
    views: np.ndarray,
    candidates: np.ndarray,
    turn: int,
    prompt_tokens: int,
    hashes: np.ndarray,
    block_tokens: int,
    now_s: float,
    model: np.ndarray,
    step_tokens: int,
) -> tuple[int, int]:
    """Returns (engine, arms that agree): by least-load, or by the arm of min-ttft whose turn it is."""
    trust = hit_trust(memory.gain) if policy["watch"] != 0 else 1.0
    picks = np.full(NUM_ARMS, turn, np.int64)
    scores = np.full(NUM_ARMS, np.inf)
    ttfts = np.zeros(NUM_ARMS)
    for engine in candidates:
        load_s = backlog_s(views, memory.sent, engine, now_s, model, step_tokens)
        if policy["policy"] == LEAST_LOAD:
            if load_s < scores[LOAD]:
                picks[LOAD], scores[LOAD] = engine, load_s
            continue
        cached = int(cached_tokens_at(memory.prefixes, engine, prompt_tokens, hashes, block_tokens) * trust)
        work_s = prefill_s(views, engine, prompt_tokens, cached, model, step_tokens)
        extra_s = policy["staleness_weight"] * views[engine]["age_s"]
        needed = views[engine]["queued_prefill_tokens"] + memory.sent.unseen_tokens[engine] + prompt_tokens - cached
        if needed > views[engine]["free_tokens"]:
            extra_s += policy["kv_wait_s"]
        score = load_s + policy["work_weight"] * work_s + extra_s
        if score < scores[AFFINITY]:
            picks[AFFINITY], scores[AFFINITY], ttfts[AFFINITY] = engine, score, load_s + work_s
        if load_s + extra_s < scores[LOAD]:
            picks[LOAD], scores[LOAD], ttfts[LOAD] = engine, load_s + extra_s, load_s + work_s
        if engine == picks[TURN]:
            ttfts[TURN] = load_s + work_s
    if policy["policy"] == LEAST_LOAD:
        return picks[LOAD], 0
    agreeing = 0
    engine = picks[deciding_arm(policy, memory.counters, memory.arms)]
    for arm in range(NUM_ARMS):
        expect(memory.arms, arm, ttfts[arm])
        if picks[arm] == engine:
            agreeing |= 1 << arm
    return engine, agreeing
