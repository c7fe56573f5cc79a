"""Engines that schedule a step ahead: their times by hand, alone and together, and that nobody is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.ahead import simulate_ahead
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Workload

# A step takes one second and a millisecond for each prompt token.
MODEL = StepModel(base_s=1.0, prefill_token_s=1e-3, decode_seq_s=0.0, kv_token_s=0.0, attention_pair_s=0.0)
SPEC = EngineSpec(max_num_seqs=4, max_num_batched_tokens=512, step_model=MODEL)


def workload(*rows: tuple[float, int, int]) -> Workload:
    arrival_s, prompts, outputs = (np.array(column) for column in zip(*sorted(rows), strict=True))
    return Workload(arrival_s.astype(np.float64), prompts, outputs)


def test_a_newcomer_waits_for_the_step_after_the_running_one() -> None:
    result = simulate_ahead(SPEC, workload((0.0, 100, 5), (0.5, 200, 2)))
    # Steps: 1.1 s of the first's prompt, during which the second comes; 1 s that was decided by then; then its prompt.
    assert result.queued_s == pytest.approx([0.0, 1.1])
    assert result.first_token_s == pytest.approx([1.1, 3.3])
    assert result.last_token_s == pytest.approx([5.3, 4.3])


def test_a_seat_is_free_one_step_after_the_last_token() -> None:
    one_seat = EngineSpec(max_num_seqs=1, max_num_batched_tokens=512, step_model=MODEL)
    result = simulate_ahead(one_seat, workload((0.0, 100, 1), (0.0, 100, 1)))
    assert result.first_token_s == pytest.approx([1.1, 3.2])


def test_engines_together_wait_for_the_one_with_most_to_do() -> None:
    result = simulate_ahead(SPEC, workload((0.0, 100, 2), (0.0, 300, 2)), num_engines=2)
    assert result.first_token_s == pytest.approx([1.3, 1.3])
    alone = simulate_ahead(SPEC, workload((0.0, 100, 2), (0.0, 300, 2)))
    assert alone.first_token_s == pytest.approx([1.4, 1.4])


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 300), st.integers(1, 30)), min_size=1, max_size=15),
    num_engines=st.integers(1, 3),
    prefix_caching=st.booleans(),
)
def test_all_are_served_and_their_times_are_what_their_parts_cost(
    rows: list[tuple[float, int, int]], num_engines: int, prefix_caching: bool
) -> None:
    """With few blocks, so that requests are preempted."""
    model = StepModel(base_s=0.01, prefill_token_s=1e-4, decode_seq_s=1e-3, kv_token_s=1e-6, attention_pair_s=1e-8)
    spec = EngineSpec(
        max_num_seqs=4, max_num_batched_tokens=64, num_blocks=25, prefix_caching=prefix_caching, step_model=model
    )
    load = workload(*rows)
    result = simulate_ahead(spec, load, num_engines)
    assert np.all(result.queued_s >= load.arrival_s)
    assert np.all(result.first_token_s > result.queued_s)
    assert np.array_equal(result.last_token_s > result.first_token_s, load.output_tokens > 1)
    ttft_s = result.first_token_s - result.queued_s
    assert result.ttft_parts @ model.coefficients() == pytest.approx(ttft_s, abs=1e-9)
    decode_s = result.tpot_parts @ model.coefficients() * (load.output_tokens - 1)
    assert decode_s == pytest.approx(result.last_token_s - result.first_token_s, abs=1e-9)


def test_what_it_does_not_model_is_refused() -> None:
    load = Workload(np.zeros(2), np.ones(2, np.int64), np.ones(2, np.int64), after=np.array([-1, 0]))
    with pytest.raises(UsageError, match="take no programs and no cancellations"):
        simulate_ahead(SPEC, load)
    with pytest.raises(UsageError, match="num_engines must be >= 1, got 0"):
        simulate_ahead(SPEC, workload((0.0, 1, 1)), num_engines=0)
