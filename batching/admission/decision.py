"""What a policy at the gate is told of a request and of the queue, and what it may answer."""

from dataclasses import dataclass

import numpy as np

from burrstone.batching.core.hashing import SEED, fold, fold_float


@dataclass(frozen=True, slots=True)
class GateRequest:
    """One generation that asks to be let in. `seq` is unique at the gate; lengths are tokens, `priority` lower first.

    `whole`: its first token is not seen apart from its last. The tenant's terms travel with it.
    """

    seq: int
    tenant: str
    prompt_tokens: int
    max_tokens: int  # of each choice; 0 where nothing is generated
    choices: int = 1
    whole: bool = False
    weight: float = 1.0
    priority: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    burst_tokens: float | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class GateView:
    """The queue as this request finds it. A sequence is one choice of one generation.

    `seats`: sequences that run at once. `ahead`: what waits at the gate and would go before this request.
    """

    seats: int
    running_sequences: int
    waiting_sequences: int
    ahead_sequences: int
    ahead_prompt_tokens: int
    expected_tokens: float  # output of this request, all choices together


@dataclass(frozen=True, slots=True)
class Admit:
    """It may start at once."""


@dataclass(frozen=True, slots=True)
class Queue:
    """It is taken, and waits for its turn."""


@dataclass(frozen=True, slots=True)
class Degrade:
    """It is taken, with at most this many output tokens for each choice."""

    max_tokens: int


@dataclass(frozen=True, slots=True)
class Reject:
    """It is refused. Were nothing else to come, it would be taken after `retry_after_s`. `reason` labels metrics."""

    retry_after_s: float
    reason: str


Decision = Admit | Queue | Degrade | Reject
_KINDS: tuple[type[Decision], ...] = (Admit, Queue, Degrade, Reject)


def decision_hash(before: int, request: GateRequest, decision: Decision) -> int:
    """64 bits of the decision and of all decisions before it."""
    hash_ = _folded(before, request.seq)
    hash_ = _folded(hash_, _KINDS.index(type(decision)))
    if isinstance(decision, Degrade):
        hash_ = _folded(hash_, decision.max_tokens)
    elif isinstance(decision, Reject):
        hash_ = int(fold_float(np.uint64(hash_), decision.retry_after_s))
    return hash_


def _folded(hash_: int, value: int) -> int:
    # A compiled kernel gives back a plain int, and takes a plain int for a signed one.
    return int(fold(np.uint64(hash_), np.int64(value)))


FIRST_HASH = int(SEED)
