"""Batches for static shapes: who goes together, and how long an idle engine waits for company."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.core.requests import new_requests
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import Shapes
from burrstone.batching.shapes.forming import Launch, LaunchRule, Wait
from burrstone.batching.shapes.planner import BatchPlanner, DpBucketsPlanner, planner

SHAPES = Shapes((128, 1024, 8192), (1, 2, 4))
MODEL = StepModel(
    base_s=0.01, prefill_token_s=5e-5, decode_seq_s=5e-5, kv_token_s=1e-7, attention_pair_s=0.0
)  # fmt: skip


def table(*rows: tuple[float, int, float, float]) -> np.ndarray:
    """Rows of (arrival_s, prompt_tokens, predicted_tokens, ttft_deadline_s)."""
    requests = new_requests(len(rows))
    requests["seq"] = np.arange(len(rows))
    for name, column in zip(
        ("arrival_s", "prompt_tokens", "predicted_tokens", "ttft_deadline_s"), zip(*rows, strict=True), strict=True
    ):
        requests[name] = column
    requests["max_tokens"] = 100
    return requests


def form(
    requests: np.ndarray, now_s: float = 0.0, gap_s: float = np.inf, by: BatchPlanner | None = None
) -> Launch | Wait:
    return (by or DpBucketsPlanner()).form(requests, np.arange(len(requests)), SHAPES, now_s, gap_s, MODEL)


def test_a_long_prompt_is_left_for_a_batch_of_its_own() -> None:
    requests = table((0, 100, 1, np.inf), (0, 8000, 1, np.inf), (0, 90, 1, np.inf), (0, 80, 1, np.inf))
    decision = form(requests)
    assert isinstance(decision, Launch)
    assert decision[:3] == ((0, 2, 3), 4, 128)
    assert form(requests, by=planner("pow2"))[:3] == ((0, 1, 2, 3), 4, 8192)


def test_a_long_answer_shares_its_decode_steps() -> None:
    """Two hundred steps each cost the same alone; together they are run once, so a longer prompt may join."""
    decision = form(table((0, 100, 200, np.inf), (0, 1000, 200, np.inf)))
    assert isinstance(decision, Launch)
    assert decision.rows == (0, 1)


def test_a_join_that_would_cost_a_deadline_is_left_out() -> None:
    alone_s = 0.01 + 5e-5 * 128
    requests = table((0, 100, 200, alone_s + 0.001), (0, 1000, 200, np.inf))
    decision = form(requests)
    assert isinstance(decision, Launch)
    assert decision.rows == (0,)
    late = form(requests, now_s=1.0)
    assert isinstance(late, Launch)
    assert late.rows == (0, 1), "a deadline that is lost already holds up nobody"


def test_an_idle_engine_waits_one_gap_and_no_longer_than_the_rule() -> None:
    requests = table((0, 100, 200, np.inf))
    soon = form(requests, gap_s=0.02)
    assert isinstance(soon, Wait)
    assert soon.until_s == 0.02
    bounded = form(requests, now_s=0.49, gap_s=0.02)
    assert isinstance(bounded, Wait)
    assert bounded.until_s == LaunchRule().max_wait_s
    assert isinstance(form(requests, now_s=0.5, gap_s=0.02), Launch)
    assert isinstance(form(requests, gap_s=1e6), Launch), "company that comes so late saves less than it costs"


def test_waiting_ends_in_time_for_a_deadline() -> None:
    prefill_s = 0.01 + 5e-5 * 128
    decision = form(table((0, 100, 200, prefill_s + 0.005)), gap_s=0.02)
    assert isinstance(decision, Wait)
    assert decision.until_s == pytest.approx(0.005)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(0, 1), st.integers(1, 4000), st.floats(1, 500), st.one_of(st.just(np.inf), st.floats(0, 3))
        ),
        min_size=1,
        max_size=9,
    ),
    now_s=st.floats(1, 3),
    gap_s=st.floats(1e-3, 5),
)
def test_decisions_are_sound_and_repeatable(
    rows: list[tuple[float, int, float, float]], now_s: float, gap_s: float
) -> None:
    requests = table(*rows)
    decision = form(requests, now_s, gap_s)
    assert form(requests, now_s, gap_s) == decision
    if isinstance(decision, Wait):
        oldest_s = requests["arrival_s"].min()
        assert now_s < decision.until_s <= oldest_s + LaunchRule().max_wait_s
    else:
        assert decision.rows[0] == 0
        assert len(set(decision.rows)) == len(decision.rows) <= decision.batch_size
        assert requests["prompt_tokens"][list(decision.rows)].max() <= decision.bound_tokens


def test_nobody_waiting_and_unknown_names() -> None:
    for name in ("pow2", "dp-buckets"):
        assert planner(name).form(table((0, 1, 1, 1)), np.array([], np.int64), SHAPES, 0.0, 1.0, MODEL)[0] == np.inf
    with pytest.raises(UsageError, match="planner must be pow2 or dp-buckets, got 'pow3'"):
        planner("pow3")
    with pytest.raises(UsageError, match="max_wait_s must be a number >= 0, got -1"):
        LaunchRule(max_wait_s=-1)
