"""The decisions of an engine's scheduler, step by step: what is admitted first, what is preempted first, how large the
step may be. The vLLM scheduler and the simulator call these kernels at the same moments, in the same order:

on_arrival, then for each step plan, on_admit for each request that starts, on_served for each that got tokens;
on_finish when a request ends, for whatever reason.
"""

import numpy as np

from burrstone.batching.core.hashing import SEED, fold, fold_requests
from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.requests import WAITING
from burrstone.batching.policies.lengths import observe_length, predict_length
from burrstone.batching.policies.order import (
    due_s,
    hopeless,
    prefill_left_s,
    priority_key,
    program_key,
    sjf_key,
    slo_key,
)
from burrstone.batching.policies.spec import FCFS, PRIORITY, PROGRAM, SJF_RANK, SLO, VTC
from burrstone.batching.policies.vtc import charge, interleave, lift_tenant


@kernel
def tier_of(policy: np.void, index: int) -> int:
    """The index-th tier of a POLICY record, outermost first."""
    if index == 0:
        return policy["tier_0"]
    if index == 1:
        return policy["tier_1"]
    if index == 2:
        return policy["tier_2"]
    return policy["tier_3"]


@kernel
def has_tier(policy: np.void, tier: int) -> bool:
    """Whether the policy has this tier."""
    found = False
    for index in range(policy["num_tiers"]):
        found = found or tier_of(policy, index) == tier
    return found


@kernel
def prefilling(request: np.void) -> bool:
    """Whether it has prompt (or, after a preemption, output) left to compute before its next token."""
    return (
        request["output_tokens"] == 0
        or request["computed_tokens"] < request["prompt_tokens"] + request["output_tokens"] - 1
    )


@kernel
def key_of(policy: np.void, tier: int, request: np.void, limit: int, now_s: float, model: np.ndarray) -> float:
    """The request's key in one tier; smaller goes first."""
    if tier == PRIORITY:
        return priority_key(request)
    if tier == SLO:
        return slo_key(request, limit, policy["work_weight"], policy["patience_s"], now_s, model)
    if tier == PROGRAM:
        return program_key(request)
    if tier == SJF_RANK:
        return sjf_key(request, policy["aging_s"], now_s)
    return 0.0


@kernel
def arrange(
    policy: np.void,
    requests: np.ndarray,
    rows: np.ndarray,
    num_rows: int,
    limit: int,
    now_s: float,
    model: np.ndarray,
    tenants: np.ndarray,
    state: np.void,
    admitting: bool,
) -> None:
    """Reorder rows[:num_rows] by all tiers. Each sort is stable, so the inner tiers settle what the outer leave open.
    admitting: the rows wait, and the turn of a relegated one may have come."""
    keys = np.empty(num_rows, np.float64)
    for index in range(policy["num_tiers"] - 1, -1, -1):
        tier = tier_of(policy, index)
        if tier == FCFS:
            for place in range(num_rows):
                keys[place] = requests[rows[place]]["seq"]
        elif tier == VTC:
            interleave(requests, rows, num_rows, policy["prompt_weight"], tenants)
            continue
        else:
            for place in range(num_rows):
                keys[place] = key_of(policy, tier, requests[rows[place]], limit, now_s, model)
        sort_by(keys, rows, num_rows)
        if tier == SLO and admitting:
            promote_relegated(policy, requests, rows, num_rows, limit, now_s, model, state)


@kernel
def sort_by(keys: np.ndarray, rows: np.ndarray, num_rows: int) -> None:
    """Sort rows[:num_rows] by keys, stably. Nothing is moved when they are in order already, as they mostly are."""
    ordered = True
    for place in range(1, num_rows):
        if keys[place] < keys[place - 1]:
            ordered = False
            break
    if ordered:
        return
    places = np.argsort(keys[:num_rows], kind="mergesort")
    given = rows[:num_rows].copy()
    for place in range(num_rows):
        rows[place] = given[places[place]]


@kernel
def decodes_first(requests: np.ndarray, rows: np.ndarray, num_rows: int) -> int:
    """Move prefills behind decodes, stably; returns the number of decodes. vLLM gives out the budget in list order."""
    prefills = np.empty(num_rows, np.int64)
    num_prefills = 0
    num_decodes = 0
    for place in range(num_rows):
        row = rows[place]
        if prefilling(requests[row]):
            prefills[num_prefills] = row
            num_prefills += 1
        else:
            rows[num_decodes] = row
            num_decodes += 1
    for index in range(num_prefills):
        rows[num_decodes + index] = prefills[index]
    return num_decodes


@kernel
def slack_budget(
    policy: np.void,
    requests: np.ndarray,
    running: np.ndarray,
    num_decodes: int,
    limit: int,
    now_s: float,
    model: np.ndarray,
) -> int:
    """Tokens that fit into this step before the tightest decode misses its next token (QoServe's dynamic chunk).

    A decode's n-th token is due at first_token_s + n * tpot_s. One that cannot catch up any more, however small the
    steps, holds back nobody; one that can gets the smallest chunks until it has.
    """
    kv_tokens = 0.0
    for place in range(num_decodes):
        kv_tokens += requests[running[place]]["computed_tokens"]
    fixed_s = model[0] + model[2] * num_decodes + model[3] * kv_tokens
    slack_s = np.inf
    for place in range(num_decodes):
        request = requests[running[place]]
        if request["tpot_s"] < np.inf and request["first_token_s"] >= 0.0:
            slack = request["first_token_s"] + request["output_tokens"] * request["tpot_s"] - now_s
            left = max(request["predicted_tokens"] - request["output_tokens"], 1.0)
            if slack + (left - 1.0) * request["tpot_s"] >= left * fixed_s:
                slack_s = min(slack_s, slack)
    if slack_s == np.inf:
        return limit
    chunk = policy["min_chunk_tokens"]
    left_s = policy["slack_margin"] * slack_s - fixed_s
    if left_s > 0.0:
        chunk = max(chunk, int(min(left_s / max(model[1], 1e-12), float(limit))))
    return min(limit, num_decodes * policy["decode_tokens"] + chunk)


@kernel
def promote_relegated(
    policy: np.void,
    requests: np.ndarray,
    waiting: np.ndarray,
    num_waiting: int,
    limit: int,
    now_s: float,
    model: np.ndarray,
    state: np.void,
) -> None:
    """Once in a while the oldest request that has lost its deadline goes first, so that none waits for ever. First as
    far as this tier decides: tiers outside it sort afterwards."""
    state["promoted_seq"] = -1
    if state["admitted_since_relegated"] < policy["relegated_every"]:
        return
    oldest = -1
    for place in range(num_waiting):
        request = requests[waiting[place]]
        if hopeless(request, limit, policy["patience_s"], now_s, model) and (
            oldest < 0 or request["seq"] < requests[waiting[oldest]]["seq"]
        ):
            oldest = place
    if oldest >= 0:
        row = waiting[oldest]
        state["promoted_seq"] = requests[row]["seq"]
        for place in range(oldest, 0, -1):
            waiting[place] = waiting[place - 1]
        waiting[0] = row


@kernel
def num_parked(
    policy: np.void,
    requests: np.ndarray,
    head: int,
    prefills: np.ndarray,
    num_prefills: int,
    budget: int,
    limit: int,
    now_s: float,
    model: np.ndarray,
) -> int:
    """How many running prefills, from the end of prefills, sit this step out for the waiting request `head`.

    vLLM serves running prefills before waiting ones, so a long prompt that has begun holds up one that is urgent.
    They are parked only if head would keep its deadline now and lose it by waiting for them.
    """
    request = requests[head]
    patience_s = policy["patience_s"]
    if request["output_tokens"] > 0 or hopeless(request, limit, patience_s, now_s, model):
        return 0
    key = slo_key(request, limit, policy["work_weight"], patience_s, now_s, model)
    chunk = max(budget, policy["min_chunk_tokens"])
    ahead_s = prefill_left_s(request, chunk, model)
    parked = 0
    for place in range(num_prefills):
        running = requests[prefills[place]]
        ahead_s += prefill_left_s(running, chunk, model)
        if slo_key(running, limit, policy["work_weight"], patience_s, now_s, model) > key:
            parked += 1
    return parked if now_s + ahead_s > due_s(request, patience_s) else 0


@kernel
def plan(
    policy: np.void,
    requests: np.ndarray,
    waiting: np.ndarray,
    num_waiting: int,
    running: np.ndarray,
    num_running: int,
    free_slots: int,
    free_blocks: int,
    block_tokens: int,
    limit: int,
    now_s: float,
    model: np.ndarray,
    tenants: np.ndarray,
    state: np.void,
) -> tuple[int, int, np.uint64]:
    """Reorder waiting and running in place; returns (token budget of the step, requests parked, hash of the decision).

    requests: [capacity] of REQUEST; waiting, running: rows of it, in queue order; limit: max_num_batched_tokens;
    block_tokens: tokens in a KV block. The last `parked` of running keep their KV and their slot, and are not served
    in this step. Waiting requests are ordered only when a slot is free: without one nobody can be admitted.
    """
    budget = limit
    parked = 0
    neutral = policy["num_tiers"] == 1 and policy["tier_0"] == FCFS
    if not neutral:
        slo = has_tier(policy, SLO)
        if free_slots > 0:
            arrange(policy, requests, waiting, num_waiting, limit, now_s, model, tenants, state, True)
        num_decodes = decodes_first(requests, running, num_running)
        prefills = running[num_decodes:num_running]
        arrange(policy, requests, prefills, num_running - num_decodes, limit, now_s, model, tenants, state, False)
        if free_blocks <= num_running:
            arrange(policy, requests, running, num_decodes, limit, now_s, model, tenants, state, False)
        if slo:
            budget = slack_budget(policy, requests, running, num_decodes, limit, now_s, model)
            # Inside other tiers a running prefill may outrank the waiting request, so nobody is parked there.
            outermost = policy["tier_0"] == SLO
            if outermost and free_slots > 0 and num_waiting > 0 and num_running > num_decodes:
                head = requests[waiting[0]]
                blocks = (head["prompt_tokens"] + head["output_tokens"] + block_tokens) // block_tokens
                # Where KV is short the step might preempt, and then admits nobody.
                if blocks + num_running <= free_blocks:
                    parked = num_parked(
                        policy, requests, waiting[0], prefills, prefills.shape[0], budget - num_decodes, limit, now_s,
                        model,
                    )  # fmt: skip
    hash_ = fold(fold(SEED, np.int64(budget)), np.int64(parked))
    if free_slots > 0:
        hash_ = fold_requests(hash_, requests, waiting, num_waiting)
    return budget, parked, fold_requests(hash_, requests, running, num_running)


@kernel
def on_arrival(policy: np.void, requests: np.ndarray, row: int, tenants: np.ndarray, state: np.void) -> None:
    """A request has come; its row is filled."""
    lift_tenant(requests, row, tenants, state["lift"])
    request = requests[row]
    tenants[request["tenant"]]["active"] += 1
    if request["predicted_tokens"] < 0.0:
        request["predicted_tokens"] = predict_length(
            tenants[request["tenant"]], policy["length_quantile"], float(request["max_tokens"])
        )


@kernel
def on_admit(
    policy: np.void, requests: np.ndarray, row: int, cached_tokens: int, tenants: np.ndarray, state: np.void
) -> None:
    """A waiting request starts to run, for the first time or after a preemption. Prompts are paid once, cached or not
    at the rate of what is computed."""
    request = requests[row]
    tenants[request["tenant"]]["waiting"] -= 1
    if request["preemptions"] == 0:
        paid = policy["prompt_weight"] * max(request["prompt_tokens"] - cached_tokens, 0)
        state["lift"] = charge(requests, row, paid, tenants)
    state["admitted_since_relegated"] += 1
    if request["seq"] == state["promoted_seq"]:
        state["admitted_since_relegated"] = 0


@kernel
def on_preempt(requests: np.ndarray, row: int, tenants: np.ndarray) -> None:
    """A running request has lost its KV cache and waits again."""
    request = requests[row]
    request["phase"] = WAITING
    request["preemptions"] += 1
    request["computed_tokens"] = 0
    tenants[request["tenant"]]["waiting"] += 1


@kernel
def on_served(
    policy: np.void, requests: np.ndarray, row: int, new_output_tokens: int, tenants: np.ndarray, state: np.void
) -> None:
    """A step gave this request so many output tokens."""
    state["lift"] = charge(requests, row, policy["output_weight"] * new_output_tokens, tenants)


@kernel
def serve_rows(
    policy: np.void,
    requests: np.ndarray,
    rows: np.ndarray,
    new_output_tokens: np.ndarray,
    now_s: float,
    tenants: np.ndarray,
    state: np.void,
) -> None:
    """A step, ending now, gave requests[rows] so many tokens each; on_served in that order."""
    for place in range(rows.shape[0]):
        request = requests[rows[place]]
        if request["output_tokens"] == 0 and new_output_tokens[place] > 0:
            request["first_token_s"] = now_s
        request["output_tokens"] += new_output_tokens[place]
        on_served(policy, requests, rows[place], new_output_tokens[place], tenants, state)


@kernel
def on_finish(policy: np.void, requests: np.ndarray, row: int, tenants: np.ndarray) -> None:
    """The request has ended: finished or cancelled."""
    request = requests[row]
    tenants[request["tenant"]]["active"] -= 1
    if request["phase"] == WAITING:
        tenants[request["tenant"]]["waiting"] -= 1
    if (has_tier(policy, SJF_RANK) or has_tier(policy, SLO)) and request["output_tokens"] > 0:
        observe_length(tenants[request["tenant"]], float(request["output_tokens"]))
