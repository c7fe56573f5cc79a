"""What this router has sent to each engine and the engine's view does not show yet."""

from typing import NamedTuple

import numpy as np

from burrstone.batching.core.kernel import kernel


class Dispatches(NamedTuple):
    """A ring of the latest dispatches to each engine, with the sums over those that its view is too old to hold."""

    time_s: np.ndarray  # [engines, ring]
    tokens: np.ndarray  # [engines, ring] int64, prefill tokens expected to be computed
    pairs: np.ndarray  # [engines, ring] attention pairs of these
    first: np.ndarray  # [engines] int64, number of the oldest dispatch that counts
    after: np.ndarray  # [engines] int64, number of the next dispatch
    unseen_tokens: np.ndarray  # [engines] int64
    unseen_pairs: np.ndarray  # [engines]


def new_dispatches(num_engines: int, ring: int = 64) -> Dispatches:
    """Nothing was sent. ring: how many dispatches to one engine are remembered between two of its reports."""
    return Dispatches(
        time_s=np.zeros((num_engines, ring)),
        tokens=np.zeros((num_engines, ring), np.int64),
        pairs=np.zeros((num_engines, ring)),
        first=np.zeros(num_engines, np.int64),
        after=np.zeros(num_engines, np.int64),
        unseen_tokens=np.zeros(num_engines, np.int64),
        unseen_pairs=np.zeros(num_engines),
    )


@kernel
def drop_seen(sent: Dispatches, engine: int, reported_s: float) -> None:
    """The engine's view was taken at reported_s: what was sent until then is in it."""
    while sent.first[engine] < sent.after[engine]:
        place = sent.first[engine] % sent.time_s.shape[1]
        if sent.time_s[engine, place] > reported_s:
            return
        _drop_first(sent, engine)


@kernel
def note_dispatch(sent: Dispatches, engine: int, now_s: float, tokens: int, pairs: float) -> None:
    """A request was sent to the engine, with so much to compute."""
    ring = sent.time_s.shape[1]
    if sent.after[engine] - sent.first[engine] == ring:
        _drop_first(sent, engine)
    place = sent.after[engine] % ring
    sent.time_s[engine, place] = now_s
    sent.tokens[engine, place] = tokens
    sent.pairs[engine, place] = pairs
    sent.unseen_tokens[engine] += tokens
    sent.unseen_pairs[engine] += pairs
    sent.after[engine] += 1


@kernel
def _drop_first(sent: Dispatches, engine: int) -> None:
    place = sent.first[engine] % sent.time_s.shape[1]
    sent.unseen_tokens[engine] -= sent.tokens[engine, place]
    sent.unseen_pairs[engine] -= sent.pairs[engine, place]
    sent.first[engine] += 1
    if sent.first[engine] == sent.after[engine]:
        sent.unseen_pairs[engine] = 0.0
