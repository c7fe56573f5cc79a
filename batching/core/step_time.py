"""The step model's arithmetic, as kernels over StepModel.coefficients(). Apart from the model, which commands read that
need no compiler."""

import numpy as np

from burrstone.batching.core.kernel import kernel


@kernel
def step_seconds(
    model: np.ndarray, prefill_tokens: float, decode_seqs: float, kv_tokens: float, attention_pairs: float
) -> float:
    """Seconds of one step. model: [5] of StepModel.coefficients()."""
    return (
        model[0]
        + model[1] * prefill_tokens
        + model[2] * decode_seqs
        + model[3] * kv_tokens
        + model[4] * attention_pairs
    )


@kernel
def prefill_seconds(model: np.ndarray, computed_tokens: int, num_tokens: int, chunk_tokens: int) -> float:
    """Seconds to prefill a request from computed_tokens to num_tokens alone, in chunks of chunk_tokens."""
    left = num_tokens - computed_tokens
    if left <= 0:
        return 0.0
    steps = (left + chunk_tokens - 1) // chunk_tokens
    return model[0] * steps + model[1] * left + model[4] * left * (computed_tokens + 0.5 * left)
