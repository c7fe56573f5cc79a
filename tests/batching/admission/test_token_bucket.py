"""Token buckets: no more than the rate in the long run, a Retry-After that holds, and refunds."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.admission.decision import Admit, Decision, GateRequest, GateView, Reject
from burrstone.batching.admission.token_bucket import TokenBucket


def request(seq: int, prompt_tokens: int, **terms: Any) -> GateRequest:
    values: dict[str, Any] = {"tenant": "a", "max_tokens": 0, "tokens_per_s": 10.0, "burst_tokens": 100.0} | terms
    return GateRequest(seq=seq, prompt_tokens=prompt_tokens, **values)


def decide(bucket: TokenBucket, asked: GateRequest, now_s: float, output: float = 0.0) -> Decision:
    return bucket.decide(asked, GateView(8, 0, 0, 0, 0, output), now_s)


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket()
    assert decide(bucket, request(0, 60), 0.0) == Admit()
    assert decide(bucket, request(1, 40), 0.0) == Admit()
    assert decide(bucket, request(2, 30), 0.0) == Reject(3.0, "token_rate")
    assert decide(bucket, request(3, 30), 2.5) == Reject(0.5, "token_rate")
    assert decide(bucket, request(4, 30), 3.0) == Admit()


def test_one_tenants_use_is_not_anothers() -> None:
    bucket = TokenBucket()
    assert decide(bucket, request(0, 100), 0.0) == Admit()
    assert decide(bucket, request(1, 100, tenant="b"), 0.0) == Admit()
    assert decide(bucket, request(2, 10**9, tenant="c", tokens_per_s=None, burst_tokens=None), 0.0) == Admit()


@pytest.mark.parametrize(
    ("output_tokens", "started", "room"),
    [(50, True, 0), (20, True, 30), (0, True, 50), (0, False, 100), (80, True, -30)],
)
def test_what_was_charged_is_settled_when_it_leaves(output_tokens: int, started: bool, room: int) -> None:
    bucket, asked = TokenBucket(), request(0, 50, max_tokens=50)
    assert decide(bucket, asked, 0.0, output=50.0) == Admit()
    bucket.left(asked, output_tokens, 0.0, started=started, finished=started)
    decision = decide(bucket, request(1, 100), 0.0)
    assert decision == (Admit() if room == 100 else Reject((100 - room) / 10.0, "token_rate"))


def test_what_is_larger_than_the_bucket_needs_it_full_and_is_owed() -> None:
    bucket = TokenBucket()
    assert decide(bucket, request(0, 300), 0.0) == Admit()
    assert decide(bucket, request(1, 300), 0.0) == Reject(30.0, "token_rate")
    assert decide(bucket, request(2, 300), 30.0) == Admit()


def test_without_a_burst_ten_seconds_worth() -> None:
    bucket = TokenBucket()
    assert decide(bucket, request(0, 100, burst_tokens=None), 0.0) == Admit()
    assert decide(bucket, request(1, 1, burst_tokens=None), 0.0) == Reject(0.1, "token_rate")


_EVENT = st.tuples(
    st.floats(0, 20), st.integers(1, 150), st.integers(0, 50), st.floats(0, 1)
)  # gap, prompt, output, share used


@given(st.lists(_EVENT, min_size=1, max_size=30), st.floats(0.1, 1000), st.floats(1, 500))
@settings(deadline=None, max_examples=200)
def test_use_stays_under_the_rate_and_retry_after_holds(
    events: list[tuple[float, int, int, float]], rate: float, burst: float
) -> None:
    bucket, now_s, used = TokenBucket(), 0.0, 0.0
    largest = 0.0
    for seq, (gap_s, prompt, output, share) in enumerate(events):
        now_s += gap_s
        asked = request(seq, prompt, max_tokens=output, tokens_per_s=rate, burst_tokens=burst)
        decision = decide(bucket, asked, now_s, output=output)
        if isinstance(decision, Reject):
            assert decision.retry_after_s > 0
            now_s += decision.retry_after_s
            assert decide(bucket, asked, now_s, output=output) == Admit()
        spent = int(output * share)
        bucket.left(asked, spent, now_s, started=True, finished=True)
        used += prompt + spent
        largest = max(largest, float(prompt + output))
        assert used <= (burst + rate * now_s + largest) * (1 + 1e-6)
