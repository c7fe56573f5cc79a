"""Skipping steps changes nothing: every policy, programs that come back, clients that leave, KV that runs short."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.drive import drive
from burrstone.batching.sim.run import Result, run_of, simulate, world_of
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.batching.sim.world import World

POLICIES = (
    "fcfs",
    "priority",
    "slo",
    "vtc",
    "program",
    "sjf-rank",
    "priority > vtc > slo",
    "program > vtc",
    "vtc > sjf-rank",
)
MODEL = StepModel(base_s=0.011, prefill_token_s=5.7e-4, decode_seq_s=1.3e-3, kv_token_s=1.9e-5, attention_pair_s=2.3e-7)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Up to 30 requests of three tenants; some leave, some follow another one with its text and more."""
    size = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    after = np.array([rng.integers(-1, row) if row and rng.random() < 0.4 else -1 for row in range(size)])
    program = np.where(rng.random(size) < 0.5, np.arange(size), -1)
    for row in np.flatnonzero(after >= 0):
        program[row] = program[after[row]]
    return Workload(
        arrival_s=np.cumsum(rng.exponential(draw(st.sampled_from([0.01, 0.1, 1.0])), size)),
        input_tokens=rng.integers(1, 60, size),
        output_tokens=rng.integers(1, draw(st.sampled_from([2, 40])), size),
        tenant=rng.integers(0, 3, size),
        program=program,
        priority=rng.integers(0, 3, size),
        max_tokens=np.full(size, 64),
        ttft_s=rng.choice([0.05, 0.5, np.inf], size),
        tpot_s=rng.choice([0.02, 0.1, np.inf], size),
        cancel_s=np.where(rng.random(size) < 0.2, rng.exponential(0.5, size), np.inf),
        after=after,
        think_s=rng.exponential(0.3, size),
        tenant_weight=np.array([1.0, 2.5, 0.3]),
    )


@st.composite
def specs(draw: st.DrawFn) -> EngineSpec:
    """Engines of a few seats and blocks."""
    seats = draw(st.integers(1, 8))
    return EngineSpec(
        policy=draw(st.sampled_from(POLICIES)),
        max_num_seqs=seats,
        max_num_batched_tokens=seats + draw(st.integers(0, 64)),
        block_size=4,
        num_blocks=25 + draw(st.integers(0, 80)),
        prefix_caching=draw(st.booleans()),
        step_model=MODEL,
        step_ratios=draw(st.sampled_from([(), (0.9, 1.0, 2.5, 1.1)])),
        noise_seed=draw(st.integers(0, 3)),
        max_pins=draw(st.integers(1, 4)),
    )


def _same(one: Result, other: Result) -> None:
    for name in Result.__dataclass_fields__:
        if name != "plan_hash":
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


@settings(max_examples=120, deadline=None)
@given(specs(), workloads())
def test_macro_is_exact(spec: EngineSpec, workload: Workload) -> None:
    exact = simulate(spec, workload, "exact")
    _same(exact, simulate(spec, workload, "macro"))
    left = ~exact.finished
    assert np.all(exact.output_tokens[exact.finished] == workload.output_tokens[exact.finished])
    assert np.all(np.isfinite(workload.cancel_s[left]) | (workload.after[left] >= 0))
    assert np.all(exact.ended_s[exact.finished] >= exact.first_token_s[exact.finished])
    assert np.all(exact.first_token_s[exact.finished] > exact.scheduled_s[exact.finished])
    assert np.all(exact.scheduled_s[exact.finished] >= exact.arrival_s[exact.finished])


def test_steps_scatter_by_their_seed() -> None:
    workload = Workload(np.zeros(3), np.full(3, 50), np.full(3, 200))
    calm = EngineSpec(step_model=MODEL)
    ratios = (0.9, 1.0, 2.5, 1.1)
    one, again, other = (
        simulate(replace(calm, step_ratios=ratios, noise_seed=seed), workload).makespan_s for seed in (1, 1, 2)
    )
    assert one == again != other
    assert one / simulate(calm, workload).makespan_s == pytest.approx(np.mean(ratios), rel=0.05)
    with pytest.raises(UsageError, match="step_ratios must be > 0, got 0"):
        EngineSpec(step_ratios=(1.0, 0.0))


@settings(max_examples=120, deadline=None)
@given(specs(), workloads(), st.booleans())
def test_rows_and_blocks_are_all_back_in_the_end(spec: EngineSpec, workload: Workload, jumping: bool) -> None:
    world, run = world_of(spec, workload), run_of(workload, spec.block_size)
    while drive(world, run, jumping, 1):
        _count_blocks(world)
    engine = world.engines[0]
    assert world.free_rows[0] == len(workload)
    assert len(set(world.free_rows[1:])) == len(workload)
    assert engine["num_waiting"] == engine["num_running"] == engine["num_prefills"] == 0
    assert engine["free_blocks"] + world.pins[0, : engine["num_pins"]]["blocks"].sum() >= spec.num_blocks
    assert np.all(world.tenants[0]["active"] == 0)


def _count_blocks(world: World) -> None:
    """Every block is free or held, by as many as it says, and what is free stands in the queue once."""
    engine = world.engines[0]
    running = world.queues[0, : engine["num_running"]]
    pins = world.pins[0, : engine["num_pins"]]
    if engine["prefix_caching"] == 0:
        held = world.jobs[running]["blocks"].sum() + pins["blocks"].sum()
        assert engine["free_blocks"] + held == engine["num_blocks"]
        return
    refs = np.zeros(engine["num_blocks"], np.int64)
    for holder in [*world.jobs[running], *pins]:
        np.add.at(refs, world.kv.tables[0, holder["slot"], : holder["blocks"]], 1)
    blocks = world.kv.blocks[0]
    assert np.array_equal(blocks["refs"][:-2], refs)
    free, here = [], blocks[engine["num_blocks"]]["after"]
    while here != engine["num_blocks"] + 1:
        free.append(int(here))
        here = blocks[here]["after"]
    assert sorted(free) == np.flatnonzero(refs == 0).tolist()
    assert len(free) == engine["free_blocks"]


@given(workloads())
@settings(max_examples=20, deadline=None)
def test_the_same_is_decided_twice(workload: Workload) -> None:
    spec = EngineSpec("priority > vtc > slo", 4, 64, 4, 40, True, MODEL)
    one, other = (simulate(spec, workload, "exact") for _ in range(2))
    assert (one.plan_hash, one.outcome_hash) == (other.plan_hash, other.outcome_hash)


def test_what_never_fits_is_refused_by_name() -> None:
    workload = Workload(np.zeros(2), np.array([5, 90]), np.array([1, 8]))
    with pytest.raises(UsageError, match="request 1 of the workload needs 25 KV blocks"):
        simulate(EngineSpec(block_size=4, num_blocks=24), workload)
    simulate(EngineSpec(block_size=4, num_blocks=25), workload)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"max_num_seqs": 8, "max_num_batched_tokens": 7}, "must be at least max_num_seqs"),
        ({"num_blocks": 0}, "num_blocks must be >= 1"),
        ({"policy": "fifo"}, "no tier 'fifo'"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineSpec(**given_)
