"""Keys by which requests are ordered: smaller goes first. One kernel a policy; each reads a request and nothing else."""

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.step_time import prefill_seconds

# Added to the key of what must wait for everything else.
LATER_S = 1e12


@kernel
def priority_key(request: np.void) -> float:
    """The tenant's or the caller's priority; the rest is settled by the next tier, at last by arrival."""
    return float(request["priority"])


@kernel
def program_key(request: np.void) -> float:
    """First come, first served among agent programs instead of calls: a program that began earlier goes first."""
    return request["program_arrival_s"]


@kernel
def sjf_key(request: np.void, aging_s: float, now_s: float) -> float:
    """Least predicted work left first; whoever waited longer than aging_s goes before all, in order of arrival."""
    if now_s - request["arrival_s"] >= aging_s:
        return request["arrival_s"] - LATER_S
    left = request["prompt_tokens"] + request["predicted_tokens"] - request["computed_tokens"]
    return max(float(left), 0.0)


@kernel
def prefill_left_s(request: np.void, limit: int, model: np.ndarray) -> float:
    """Seconds of prefill that this request still needs, were it alone."""
    return prefill_seconds(
        model, request["computed_tokens"], request["prompt_tokens"] + request["output_tokens"], limit
    )


@kernel
def due_s(request: np.void, patience_s: float) -> float:
    """When the request's next token is due: its first by the deadline, a later one by the pace that is asked for."""
    if request["output_tokens"] == 0:
        if request["ttft_deadline_s"] < np.inf:
            return min(request["ttft_deadline_s"], request["deadline_s"])
        return min(request["arrival_s"] + patience_s, request["deadline_s"])
    due = request["first_token_s"] + request["output_tokens"] * request["tpot_s"]
    if due < np.inf:
        return due
    return request["arrival_s"] + patience_s


@kernel
def hopeless(request: np.void, limit: int, patience_s: float, now_s: float, model: np.ndarray) -> bool:
    """Whether its first token would be late even if it had the engine to itself from now on."""
    return request["output_tokens"] == 0 and now_s + prefill_left_s(request, limit, model) > due_s(request, patience_s)


@kernel
def slo_key(
    request: np.void, limit: int, work_weight: float, patience_s: float, now_s: float, model: np.ndarray
) -> float:
    """Deadline plus weighted remaining work (QoServe); what has lost its deadline goes last, in order of arrival."""
    work_s = prefill_left_s(request, limit, model)
    due = due_s(request, patience_s)
    if request["output_tokens"] == 0 and now_s + work_s > due:
        return LATER_S + request["arrival_s"]
    return due + work_weight * work_s
