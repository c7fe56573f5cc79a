"""Requests that begin alike: a system prompt of many users, or one long record and questions about it."""

from dataclasses import dataclass, replace

import numpy as np

from burrstone.batching.sim.traffic.arrivals import Fixed, Lengths
from burrstone.batching.sim.traffic.workload import Stream, generate
from burrstone.batching.sim.traffic.workload_types import Prefixes, Workload


@dataclass(frozen=True, slots=True)
class SharedLoad:
    """`texts` beginnings of `shared_tokens`; each request has one of them, drawn alike often, and its own tokens after it."""

    rate: float
    texts: int
    shared_tokens: int
    own_tokens: Lengths
    output_tokens: Lengths
    cv: float = 1.0
    block_tokens: int = 16


def shared_beginnings(load: SharedLoad, duration_s: float, seed: int) -> Workload:
    """Arrivals as of `generate`."""
    plain = generate([Stream(load.rate, load.own_tokens, load.output_tokens, cv=load.cv)], duration_s, seed)
    blocks = load.shared_tokens // load.block_tokens
    text = np.random.default_rng([seed, len(plain)]).integers(0, load.texts, len(plain))
    starts = np.arange(len(plain) + 1, dtype=np.int64) * blocks
    # A hash stands for the text up to its block's end, so that it is of its text and its place.
    hashes = (
        (np.uint64(seed & 0xFFFF) << np.uint64(48))
        + (np.repeat(text, blocks).astype(np.uint64) << np.uint64(24))
        + np.tile(np.arange(blocks, dtype=np.uint64), len(plain))
    )
    return replace(
        plain,
        input_tokens=plain.input_tokens + load.shared_tokens,
        prefixes=Prefixes(starts, hashes, load.block_tokens),
    )


def fixed(tokens: float) -> Fixed:
    """A length that a command line gave as a number."""
    return Fixed(max(1, round(tokens)))
