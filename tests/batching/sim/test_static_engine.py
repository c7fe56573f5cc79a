"""The static-shape engine: its times by hand, and that it serves every request whatever the planner decides."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import Shapes
from burrstone.batching.shapes.forming import LaunchRule
from burrstone.batching.shapes.planner import DpBucketsPlanner, Pow2Planner
from burrstone.batching.sim.static_engine import run_one_prompt, run_static_batch
from burrstone.batching.sim.traffic.workload_types import Workload

SHAPES = Shapes((128, 1024, 8192), (1, 2, 4))
MODEL = StepModel(base_s=0.01, prefill_token_s=1e-4, decode_seq_s=1e-3, kv_token_s=1e-6, attention_pair_s=0.0)


def workload(rows: list[tuple[float, int, int]]) -> Workload:
    rows = sorted(rows)
    arrival_s, prompts, outputs = (np.array(column) for column in zip(*rows, strict=True))
    return Workload(arrival_s.astype(np.float64), prompts, outputs)


def test_a_static_batch_runs_until_its_last_request_has_finished() -> None:
    run = run_static_batch(workload([(0.0, 100, 2), (0.0, 90, 4), (0.0, 1, 1)]), SHAPES, MODEL, Pow2Planner())
    prefill_s = 0.01 + 4 * 128 * 1e-4
    decode_s = 0.01 + 4e-3 + 4 * 128 * 1e-6
    assert run.first_token_s == pytest.approx([prefill_s] * 3)
    # Sorted by arrival, prompt, output: the one-token answer is the first row.
    assert run.last_token_s == pytest.approx([prefill_s, prefill_s + 3 * decode_s, prefill_s + decode_s])
    assert (run.launches, run.prompt_tokens_computed) == (1, 4 * 128)


def test_decoding_takes_the_next_bound_when_the_context_outgrows_one() -> None:
    run = run_static_batch(workload([(0.0, 127, 4)]), SHAPES, MODEL, Pow2Planner())
    steps_s = [0.01 + 1e-3 + bound * 1e-6 for bound in (128, 1024, 1024)]
    assert run.last_token_s[0] - run.first_token_s[0] == pytest.approx(sum(steps_s))


def test_one_prompt_a_step_holds_up_the_decodes() -> None:
    run = run_one_prompt(workload([(0.0, 100, 3), (0.03, 100, 1)]), SHAPES, MODEL)
    prefill_s, decode_s = 0.01 + 128e-4, 0.01 + 4e-3 + 4 * 128 * 1e-6
    assert run.first_token_s == pytest.approx([prefill_s, prefill_s + decode_s + prefill_s])
    assert run.last_token_s[0] == pytest.approx(2 * prefill_s + 2 * decode_s)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4000), st.integers(1, 300)), min_size=1, max_size=25),
    max_wait_s=st.floats(0, 1),
)
# Two at nearly the same time, and then nobody for long: the gap between them says nothing of the next one.
@example(rows=[(1.4e-45, 81, 12), (5.3e-17, 220, 300), (1.04, 62, 300)], max_wait_s=0.33)
def test_every_request_is_served_once_and_idle_waits_are_bounded(
    rows: list[tuple[float, int, int]], max_wait_s: float
) -> None:
    given_load = workload(rows)
    planner = DpBucketsPlanner(LaunchRule(max_wait_s=max_wait_s))
    run = run_static_batch(given_load, SHAPES, MODEL, planner)
    assert run.longest_idle_wait_s <= max_wait_s + 1e-12
    assert run.prompt_tokens_computed >= given_load.input_tokens.sum()
    for served in (run, run_one_prompt(given_load, SHAPES, MODEL)):
        assert np.all(served.first_token_s > given_load.arrival_s)
        assert np.all(served.last_token_s >= served.first_token_s)
        later = served.last_token_s > served.first_token_s
        assert np.array_equal(later, given_load.output_tokens > 1)


def test_a_request_that_no_graph_holds_is_told() -> None:
    with pytest.raises(UsageError, match="last bound, 8192; request 0 needs 8200"):
        run_one_prompt(workload([(0.0, 8000, 200)]), SHAPES, MODEL)
