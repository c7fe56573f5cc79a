"""The simulator's engine against vLLM's rules written down a second time: every time and every count, to the last bit."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import NaiveBlocks, NaiveEngine, NaiveRequest

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Prefixes, Workload

MODEL = StepModel(base_s=0.011, prefill_token_s=5.7e-4, decode_seq_s=1.3e-3, kv_token_s=1.9e-5, attention_pair_s=2.3e-7)
BLOCK = 4

Request = tuple[float, int, int, int, int]  # gap, prompt and output tokens, which text it begins with, how much of it
REQUESTS = st.lists(
    st.tuples(st.floats(0, 0.2), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2), st.integers(0, 40)),
    min_size=1,
    max_size=25,
)


def _texts(requests: list[Request]) -> list[list[object]]:
    return [
        [("shared", text, index) if index < shared else ("own", number, index) for index in range(prompt)]
        for number, (_, prompt, _, text, shared) in enumerate(requests)
    ]


def _workload(requests: list[Request]) -> Workload:
    keys: dict[tuple[object, ...], int] = {}
    starts, hashes = [0], []
    for text in _texts(requests):
        for end in range(BLOCK, len(text) + 1, BLOCK):
            hashes.append(keys.setdefault(tuple(text[:end]), len(keys) + 1))
        starts.append(len(hashes))
    return Workload(
        arrival_s=np.cumsum([request[0] for request in requests]),
        input_tokens=np.array([request[1] for request in requests]),
        output_tokens=np.array([request[2] for request in requests]),
        prefixes=Prefixes(np.array(starts), np.array(hashes, np.uint64), BLOCK),
    )


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.integers(1, 6), st.integers(0, 30), st.integers(0, 45), st.booleans())
def test_every_time_and_count_is_as_vllms_rules_say(
    requests: list[Request], max_num_seqs: int, more_tokens: int, more_blocks: int, caching: bool
) -> None:
    workload = _workload(requests)
    num_blocks = int(np.max(-(-(workload.input_tokens + workload.output_tokens - 1) // BLOCK))) + more_blocks
    limit = max_num_seqs + more_tokens
    naive = [
        NaiveRequest(number, float(workload.arrival_s[number]), text, requests[number][2])
        for number, text in enumerate(_texts(requests))
    ]
    blocks = NaiveBlocks(num_blocks, BLOCK, caching)
    engine = NaiveEngine(max_num_seqs=max_num_seqs, limit=limit, blocks=blocks, model=list(MODEL.coefficients()))
    engine.run(naive)
    spec = EngineSpec("fcfs", max_num_seqs, limit, BLOCK, num_blocks, caching, MODEL)
    for mode in ("exact", "macro"):
        result: Any = simulate(spec, workload, mode)
        for name in ("scheduled_s", "first_token_s", "ended_s", "cached_tokens", "preemptions"):
            assert getattr(result, name).tolist() == [getattr(request, name) for request in naive], (mode, name)
        assert result.makespan_s == engine.now_s
