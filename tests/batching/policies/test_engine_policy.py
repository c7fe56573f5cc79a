"""Whatever happens to an engine's requests: none is lost, equal pasts decide alike, and a saved policy goes on as before."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.policies.engine_policy import Arrival, EnginePolicy
from burrstone.batching.policies.spec import Knobs, PolicySpec

POLICIES = ("fcfs", "priority", "slo", "vtc", "program", "sjf-rank", "priority > vtc > slo")
arrivals = st.builds(
    Arrival,
    prompt_tokens=st.integers(1, 400),
    max_tokens=st.integers(1, 12),
    tenant=st.integers(0, 20),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
    program=st.integers(-1, 3),
    priority=st.integers(-2, 2),
    ttft_s=st.sampled_from([0.01, 0.5, 60.0, np.inf]),
    tpot_s=st.sampled_from([0.001, 0.05, np.inf]),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), arrivals),
        st.tuples(st.just("step"), st.integers(0, 1000)),
        st.tuples(st.just("cancel"), st.integers(0, 1000)),
        st.tuples(st.just("preempt"), st.integers(0, 1000)),
    ),
    max_size=60,
)


class Engine:
    """Serves four requests at a time, a token each a step, in the order that the policy gives."""

    def __init__(self, policy: EnginePolicy) -> None:
        self.policy = policy
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.finished: list[int] = []
        self.hashes: list[int] = []
        self.now_s = 0.0

    def arrive(self, arrival: Arrival) -> None:
        self.waiting.append(self.policy.add(arrival, self.now_s))

    def cancel(self, which: int) -> None:
        rows = self.waiting + self.running
        if rows:
            self._end(rows[which % len(rows)])

    def preempt(self, which: int) -> None:
        if self.running:
            row = self.running.pop(which % len(self.running))
            self.policy.preempted(row)
            self.waiting.insert(0, row)

    def step(self, free_blocks: int) -> None:
        given_waiting, given_running = sorted(self.waiting), sorted(self.running)
        plan = self.policy.plan(
            np.array(self.waiting, dtype=np.int64),
            np.array(self.running, dtype=np.int64),
            free_slots=4 - len(self.running),
            free_blocks=free_blocks,
            now_s=self.now_s,
        )
        assert sorted(plan.waiting) == given_waiting
        assert sorted(plan.running) == given_running
        assert 1 <= plan.budget <= 64
        assert 0 <= plan.parked <= len(given_running)
        self.hashes.append(plan.hash)
        self.waiting, self.running = plan.waiting.tolist(), plan.running.tolist()
        while self.waiting and len(self.running) < 4:
            self.running.append(self.waiting.pop(0))
            self.policy.admitted(self.running[-1], 0)
        self.now_s += 0.05
        for row in list(self.running):
            request = self.policy.requests[row]
            request["computed_tokens"] = request["prompt_tokens"] + request["output_tokens"]
            self.policy.served(row, 1, self.now_s)
            if request["output_tokens"] >= request["max_tokens"]:
                self._end(row)

    def apply(self, event: tuple[str, object]) -> None:
        getattr(self, event[0])(event[1])

    def drain(self) -> None:
        for _ in range(2000):
            if not self.waiting and not self.running:
                return
            self.step(1000)
        raise AssertionError(f"{len(self.waiting)} requests starve")

    def _end(self, row: int) -> None:
        self.finished.append(int(self.policy.requests[row]["seq"]))
        (self.waiting if row in self.waiting else self.running).remove(row)
        self.policy.remove(row)


def engine_of(text: str) -> Engine:
    spec = PolicySpec.parse(text, Knobs(relegated_every=4))
    return Engine(EnginePolicy(spec, DEFAULT_STEP_MODEL, max_step_tokens=64, block_tokens=16))


@pytest.mark.parametrize("text", POLICIES)
@given(events=events)
@settings(max_examples=40, deadline=None)
def test_every_request_ends_exactly_once(text: str, events: list[tuple[str, object]]) -> None:
    engine = engine_of(text)
    for event in events:
        engine.apply(event)
    engine.drain()
    assert sorted(engine.finished) == list(range(engine.policy.next_seq))
    assert (engine.policy.tenants["active"] == 0).all()


@pytest.mark.parametrize("text", POLICIES)
@given(events=events, cut=st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_a_saved_policy_goes_on_as_before(text: str, events: list[tuple[str, object]], cut: int) -> None:
    one, other = engine_of(text), engine_of(text)
    for index, event in enumerate(events):
        if index == cut:
            fresh = engine_of(text).policy
            fresh.load(other.policy.save())
            other.policy = fresh
        one.apply(event)
        other.apply(event)
    one.drain()
    other.drain()
    assert one.hashes == other.hashes
    assert one.finished == other.finished


def test_a_saved_policy_is_refused_by_another() -> None:
    with pytest.raises(ValueError, match="'vtc', this is 'slo'"):
        engine_of("slo").policy.load(engine_of("vtc").policy.save())


def test_a_flood_does_not_hold_up_another_tenant_under_vtc() -> None:
    fair, stock = engine_of("vtc"), engine_of("fcfs")
    for engine in (fair, stock):
        for _ in range(100):
            engine.arrive(Arrival(50, 5, tenant=0))
        engine.arrive(Arrival(50, 5, tenant=1))
        engine.drain()
    assert stock.finished.index(100) == 100
    assert fair.finished.index(100) < 8


_COMPARE = """
import sys
sys.path.insert(0, sys.argv[1])
import test_engine_policy as t
from burrstone.batching.policies.engine_policy import Arrival
import numpy as np
rng = np.random.default_rng(5)
for text in t.POLICIES:
    engine = t.engine_of(text)
    for _ in range(60):
        engine.arrive(Arrival(int(rng.integers(1, 400)), int(rng.integers(1, 9)), int(rng.integers(0, 5)),
                              priority=int(rng.integers(0, 3)), ttft_s=float(rng.choice([0.3, 60.0])), tpot_s=0.05))
        if rng.random() < 0.5:
            engine.step(int(rng.integers(0, 20)))
        if rng.random() < 0.1:
            engine.preempt(int(rng.integers(0, 9)))
    engine.drain()
    print(text, engine.hashes, engine.finished)
"""


def test_compiled_and_plain_kernels_decide_alike(tmp_path: object) -> None:
    folder = str(__file__).rsplit("/", 1)[0]
    decided = [
        subprocess.run(
            [sys.executable, "-c", _COMPARE, folder],
            env={"PATH": "", "HOME": str(tmp_path), "NUMBA_DISABLE_JIT": disable},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disable in ("0", "1")
    ]
    assert decided[0]
    assert decided[0] == decided[1]
