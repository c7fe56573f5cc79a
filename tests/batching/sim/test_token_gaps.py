"""Gaps between tokens, where they can be worked out by hand, and against what `simulate` tells."""

import numpy as np
import pytest

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.token_gaps import token_gaps
from burrstone.batching.sim.traffic.workload import Stream, generate
from burrstone.batching.sim.traffic.workload_types import Workload

MODEL = StepModel(base_s=0.01, prefill_token_s=0.001, decode_seq_s=0.002, kv_token_s=0.0, attention_pair_s=0.0)


def test_a_prefill_lengthens_the_gap_of_whoever_decodes() -> None:
    workload = Workload(np.array([0.0, 0.12]), np.array([100, 50]), np.array([4, 1]))
    # First token at 0.11 s; a decode of 12 ms to 0.122; then the other's prefill beside it, 62 ms; then alone again.
    gaps = token_gaps(EngineSpec(step_model=MODEL), workload)
    assert gaps == pytest.approx([0.012, 0.062, 0.012])


@pytest.mark.parametrize("policy", ["fcfs", "slo"])
def test_gaps_add_up_to_the_time_from_first_to_last_token(policy: str) -> None:
    workload = generate([Stream(6.0)], 20.0, 1)
    spec = EngineSpec(policy=policy, max_num_seqs=16, num_blocks=800)
    result = simulate(spec, workload)
    gaps = token_gaps(spec, workload)
    assert len(gaps) == (workload.output_tokens - 1).sum()
    assert gaps.sum() == pytest.approx((result.ended_s - result.first_token_s).sum())
