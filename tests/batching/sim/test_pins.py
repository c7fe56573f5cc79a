"""Finished calls' KV caches are kept for their programs, and given up when others need the room."""

from dataclasses import replace

import numpy as np
import pytest

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.policies.spec import Knobs
from burrstone.batching.sim.drive import drive
from burrstone.batching.sim.run import run_of, simulate, world_of
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Prefixes, Workload

MODEL = StepModel(base_s=0.011, prefill_token_s=5.7e-4, decode_seq_s=1.3e-3, kv_token_s=1.9e-5, attention_pair_s=2.3e-7)
BLOCK = 8


def conversations(programs: int, turns: int, seed: int) -> Workload:
    """Programs whose every call repeats all that was said before; one call's text is a program's hashes so far."""
    rng = np.random.default_rng(seed)
    program = np.tile(np.arange(programs), turns)
    turn = np.repeat(np.arange(turns), programs)
    grown = rng.integers(2, 6, (turns, programs)).cumsum(axis=0).reshape(-1) * BLOCK
    output = rng.integers(1, 3, programs * turns) * BLOCK
    hashes = [number * 1000 + np.arange(1, count) for number, count in zip(program, grown // BLOCK + 1, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in hashes])])
    return Workload(
        arrival_s=np.sort(rng.uniform(0, 2, programs * turns)),
        input_tokens=grown,
        output_tokens=output,
        program=program,
        turn=turn,
        after=np.where(turn > 0, np.arange(programs * turns) - programs, -1),
        think_s=rng.uniform(0.05, 0.4, programs * turns),
        prefixes=Prefixes(starts, np.concatenate(hashes).astype(np.uint64), BLOCK),
    )


def _spec(caching: bool, num_blocks: int, ttl_s: float = 30.0, max_pins: int = 64) -> EngineSpec:
    return EngineSpec("program", 4, 64, BLOCK, num_blocks, caching, MODEL, Knobs(ttl_s=ttl_s), max_pins)


@pytest.mark.parametrize("max_pins", [2, 64])
@pytest.mark.parametrize("num_blocks", [70, 300])
@pytest.mark.parametrize("caching", [True, False])
def test_kept_caches_change_nothing_between_modes(caching: bool, num_blocks: int, max_pins: int) -> None:
    for seed in range(4):
        workload = conversations(12, 8, seed)
        spec = _spec(caching, num_blocks, max_pins=max_pins)
        exact, macro = (simulate(spec, workload, mode) for mode in ("exact", "macro"))
        assert exact.outcome_hash == macro.outcome_hash
        assert np.array_equal(exact.ended_s, macro.ended_s)
        assert exact.hit_tokens == macro.hit_tokens > 0
        assert np.all(exact.finished)


@pytest.mark.parametrize("caching", [True, False])
def test_what_is_kept_is_found(caching: bool) -> None:
    """With room for all, calls after the first few find what their programs have computed. Where blocks are only
    counted, nothing is left of a cache that has expired, as one in ten may have."""
    workload = conversations(12, 8, 0)
    kept = simulate(_spec(caching, 2000), workload)
    late = workload.turn >= 4
    before = workload.input_tokens[workload.after[late]]
    found = kept.cached_tokens[late] >= before
    assert found.mean() >= (1.0 if caching else 0.8)
    none = simulate(_spec(caching, 2000, ttl_s=0.0), workload)
    assert none.hit_tokens == (kept.hit_tokens if caching else 0)


def test_nothing_is_kept_after_an_answer_that_calls_no_tool() -> None:
    """With room for all: a program that is known to have ended holds no block, one that may go on does."""
    workload = conversations(12, 8, 0)
    ends = replace(workload, final=(workload.turn == 7).astype(np.int64))
    for load, kept in ((workload, True), (ends, False)):
        world, run = world_of(_spec(False, 2000), load), run_of(load, BLOCK)
        while drive(world, run, True, 1):
            pass
        assert (world.engines[0]["num_pins"] > 0) == kept
        assert (world.engines[0]["free_blocks"] < 2000) == kept


def test_a_running_request_breaks_pins_before_anybody_is_preempted() -> None:
    workload = conversations(12, 8, 1)
    spec = _spec(True, 70)
    world, run = world_of(spec, workload), run_of(workload, BLOCK)
    most_pins = preempted_with_pins = 0
    preemptions = 0
    while drive(world, run, True, 1):
        engine = world.engines[0]
        most_pins = max(most_pins, int(engine["num_pins"]))
        held = world.pins[0, : engine["num_pins"]]["blocks"].sum()
        assert engine["free_blocks"] + held <= spec.num_blocks
        preempted_with_pins += int(engine["preemptions"] > preemptions and engine["num_pins"] > 4)
        preemptions = int(engine["preemptions"])
    assert most_pins > 0
    assert preempted_with_pins == 0
