"""How long a request would wait for its first token on an engine, from the engine's view and what was sent there since."""

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.step_time import prefill_seconds
from burrstone.batching.routing.dispatches import Dispatches, drop_seen


@kernel
def backlog_s(
    views: np.ndarray, sent: Dispatches, engine: int, now_s: float, model: np.ndarray, step_tokens: int
) -> float:
    """Seconds of prefill that the engine has before it. views: [engines] of ENGINE_VIEW; model: [5] of StepModel."""
    view = views[engine]
    drop_seen(sent, engine, now_s - view["age_s"])
    step_s = model[0] + model[2] * view["running"]
    room = max(step_tokens - view["running"], 1)
    seen_tokens = view["queued_prefill_tokens"]
    tokens = seen_tokens + sent.unseen_tokens[engine]
    seen_s = (seen_tokens + room - 1) // room * step_s + model[1] * seen_tokens
    seen_s += model[4] * view["queued_attention_pairs"]
    total_s = (tokens + room - 1) // room * step_s + model[1] * tokens
    total_s += model[4] * (view["queued_attention_pairs"] + sent.unseen_pairs[engine])
    # What was seen has been worked off while the view grew old. Decodes delay the next step even when nothing queues.
    return total_s - min(view["age_s"], seen_s) + model[2] * view["running"]


@kernel
def prefill_s(
    views: np.ndarray, engine: int, prompt_tokens: int, cached_tokens: int, model: np.ndarray, step_tokens: int
) -> float:
    """Seconds to compute the part of the prompt that is not cached, among the engine's decodes."""
    running = views[engine]["running"]
    room = max(step_tokens - running, 1)
    steps = (prompt_tokens - cached_tokens + room - 1) // room
    return prefill_seconds(model, cached_tokens, prompt_tokens, room) + steps * model[2] * running


@kernel
def attention_pairs(prompt_tokens: int, cached_tokens: int) -> float:
    """What the step model's attention term counts for computing the rest of a prompt."""
    left = float(prompt_tokens - cached_tokens)
    return left * (cached_tokens + 0.5 * left)
