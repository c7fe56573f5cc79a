"""What a router sees of each engine: a row of ENGINE_VIEW, as old as `age_s` says."""

import numpy as np

ENGINE_VIEW = np.dtype(
    [
        ("alive", np.int64),  # 1 if requests may go there, 0 if it is dead, draining or starting
        ("queued_prefill_tokens", np.int64),  # prompt tokens to compute, of waiting and running requests, hits left out
        (
            "queued_attention_pairs",
            np.float64,
        ),  # what attention adds to those, as the step model counts it; 0 if unknown
        ("waiting", np.int64),  # requests
        ("running", np.int64),  # requests that decode
        ("free_tokens", np.int64),  # tokens of KV cache that are free or can be evicted
        ("age_s", np.float64),  # since the engine reported this
    ]
)
UNLIMITED_TOKENS = 1 << 60


def new_views(num_engines: int) -> np.ndarray:
    """Engines that are alive, idle and just seen: [engines] of ENGINE_VIEW."""
    views = np.zeros(num_engines, dtype=ENGINE_VIEW)
    views["alive"] = 1
    views["free_tokens"] = UNLIMITED_TOKENS
    return views
