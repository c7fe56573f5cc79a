"""What a prefix hit is really worth, learned from the first tokens of all requests.

Two things can make hits worth less than the router believes. The engine no longer has the blocks: it reports what it
found. Or it has them and is hardly faster for it (they are fetched from afar, or others crowd there too): the observed
TTFT is fitted to a * waiting + b * prefill left + c * prefill spared, and c / b of what a hit spares is spent after all.
"""

import numpy as np

from burrstone.batching.core.kernel import kernel

GAIN = np.dtype(
    [
        ("claimed_tokens", np.float64),  # decayed: prompt tokens that the index held to be cached
        ("found_tokens", np.float64),  # decayed: those that the engine did have
        ("products", np.float64, (3, 3)),  # decayed, of the terms of the fit
        ("targets", np.float64, (3,)),  # decayed, of the terms with what was observed
    ]
)
# Hits are trusted until about so much was seen.
_PRIOR_TOKENS = 4096.0
_PRIOR_REQUESTS = 0.5
_TOKENS_DECAY = 1.0 - 1.0 / 64.0
_FIT_DECAY = 1.0 - 1.0 / 512.0


def new_gain() -> np.ndarray:
    """Nothing was seen, and a hit is worth what it spares: [1] of GAIN."""
    return np.zeros(1, dtype=GAIN)


@kernel
def hit_trust(gain: np.ndarray) -> float:
    """The share of claimed hits that requests gain from, in [0, 1]. gain: [1] of GAIN."""
    found = gain[0]["found_tokens"] + _PRIOR_TOKENS
    held = min(1.0, found / (gain[0]["claimed_tokens"] + _PRIOR_TOKENS))
    left, spared = _slopes(gain)
    return held * min(1.0, max(0.0, 1.0 - spared / max(left, 1e-9)))


@kernel
def learn_gain(
    gain: np.ndarray,
    waiting_s: float,
    whole_s: float,
    spared_s: float,
    claimed_tokens: int,
    found_tokens: int,
    observed_s: float,
) -> None:
    """A request got its first token. whole_s: its prefill without a hit; spared_s: how much less of it was predicted."""
    if claimed_tokens > 0:
        found = min(found_tokens, claimed_tokens)
        gain[0]["claimed_tokens"] = gain[0]["claimed_tokens"] * _TOKENS_DECAY + claimed_tokens
        gain[0]["found_tokens"] = gain[0]["found_tokens"] * _TOKENS_DECAY + found
        spared_s *= found / claimed_tokens
    # Relative to the longest that was predicted, so that long waits do not drown the rest.
    scale_s = max(waiting_s + whole_s, 1e-6)
    terms = (waiting_s / scale_s, (whole_s - spared_s) / scale_s, spared_s / scale_s)
    products, targets = gain[0]["products"], gain[0]["targets"]
    for row in range(3):
        targets[row] = targets[row] * _FIT_DECAY + terms[row] * observed_s / scale_s
        for column in range(3):
            products[row, column] = products[row, column] * _FIT_DECAY + terms[row] * terms[column]


@kernel
def _slopes(gain: np.ndarray) -> tuple[float, float]:
    """The fitted (b, c), held near (1, 0) by an imagined request that went as predicted. By Cramer's rule."""
    p, t, prior = gain[0]["products"], gain[0]["targets"], _PRIOR_REQUESTS
    a, d, f = p[0, 0] + prior, p[1, 1] + prior, p[2, 2] + prior
    b, c, e = p[0, 1], p[0, 2], p[1, 2]
    x, y, z = t[0] + prior, t[1] + prior, t[2]
    det = a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d)
    left = (a * (y * f - e * z) - x * (b * f - e * c) + c * (b * z - y * c)) / det
    spared = (a * (d * z - y * e) - b * (b * z - y * c) + x * (b * e - d * c)) / det
    return left, spared
