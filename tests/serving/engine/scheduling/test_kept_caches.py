"""KV caches of finished calls: kept for their programs, found by the next call, given up for whoever needs the room."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bare_scheduler import BareEngine, make_scheduler, vllm_config
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.serving.engine.scheduling.options import SchedulerOptions
from burrstone.serving.engine.scheduling.scheduler import BurrstoneScheduler
from burrstone.serving.engine.scheduling.watchdog import Watchdog

NUM_BLOCKS = 33  # one is vLLM's own


class Engine(BareEngine):
    """A bare engine with policy `program`, whose clock the test sets; each step takes a tenth of a second."""

    def __init__(self, folder: Path, policy: str = "program", **config: Any) -> None:
        self.now_s = 100.0
        scheduler = make_scheduler(BurrstoneScheduler, vllm_config(folder, num_blocks=NUM_BLOCKS, **config))
        scheduler.start_policy(SchedulerOptions(policy), lambda: self.now_s, Watchdog(slow_hook_s=60.0))
        super().__init__(scheduler)

    def decide(self) -> Any:
        output = super().decide()
        self.now_s += 0.1
        return output

    @property
    def free_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def call(self, name: str, tokens: list[int], program: str | None = "agent", max_tokens: int = 4) -> int:
        """A call from its coming to its end; returns how many of its tokens were found in the cache."""
        request = self.add(name, tokens, max_tokens, {"program_id": program})
        self.decide()
        cached = int(request.num_computed_tokens - self.steps[-1].get(name, 0))
        self.end()
        self.run()
        return cached

    def learn(self, gap_s: float = 2.0) -> None:
        """Let the policy see that programs come back after so long."""
        for number in range(6):
            self.call(f"lesson{number}", list(range(3, 20)), "teacher")
            self.now_s += gap_s
        self.scheduler.reset_prefix_cache()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def tokens(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 900), k=count)


def churn(engine: Engine, number: int = 0) -> None:
    """Calls of nobody's program that want most of the cache's blocks."""
    for turn in range(3):
        engine.call(f"churn{number}.{turn}", tokens(1000 + turn + number, 300), None)


def test_the_next_call_finds_what_others_would_have_evicted(folder: Path) -> None:
    first = tokens(1, 128)
    found = {}
    for policy in ("program", "priority"):
        engine = Engine(folder, policy)
        engine.learn()
        engine.call("turn1", first)
        churn(engine)
        found[policy] = engine.call("turn2", first + tokens(2, 16))
    assert found == {"program": 128, "priority": 0}


def test_nothing_is_kept_before_a_return_was_seen(folder: Path) -> None:
    engine = Engine(folder)
    engine.call("turn1", tokens(1, 128))
    assert engine.free_blocks == NUM_BLOCKS - 1


def test_kept_blocks_are_counted_and_expire(folder: Path) -> None:
    engine = Engine(folder)
    engine.learn(gap_s=2.0)
    engine.call("turn1", tokens(1, 128))
    assert engine.free_blocks == NUM_BLOCKS - 1 - 9
    assert engine.scheduler.counters.kept_blocks == 9
    engine.now_s += 60.0
    engine.call("other", tokens(2, 10), None)
    assert engine.free_blocks == NUM_BLOCKS - 1


def test_a_program_at_rest_keeps_nothing(folder: Path) -> None:
    engine = Engine(folder)
    engine.learn()
    engine.call("turn1", tokens(1, 128), "done")
    engine.call("turn2", tokens(2, 128), "busy")
    assert engine.free_blocks == NUM_BLOCKS - 1 - 18
    engine.add("turn3", tokens(2, 128), 4, {"program_id": "busy"})
    rested = [("", "done"), ("", "busy"), ("", "unknown"), ("other", "done")]
    engine.add("other", tokens(3, 10), 1, {"rested": rested})
    assert engine.free_blocks == NUM_BLOCKS - 1 - 9
    engine.run()
    assert engine.scheduler.kept.num_blocks == 9 and not engine.scheduler.watchdog.fallen


def test_a_cache_does_not_expire_while_its_call_waits(folder: Path) -> None:
    engine = Engine(folder, max_num_seqs=1)
    engine.learn()
    first = tokens(1, 128)
    engine.call("turn1", first)
    engine.add("long", tokens(5, 64), 120)
    engine.step()
    request = engine.add("turn2", first, 2, {"program_id": "agent"})
    engine.now_s += 60.0
    while request.num_computed_tokens == 0:
        engine.decide()
        cached = request.num_computed_tokens - engine.steps[-1].get("turn2", 0)
        engine.end()
    assert cached == 112  # all full blocks but the last, of which a token is to be computed


def test_running_requests_break_kept_caches_before_anybody_is_preempted(folder: Path) -> None:
    engine = Engine(folder)
    engine.learn()
    engine.call("turn1", tokens(1, 128))
    engine.add("grows", tokens(2, 300), 200)
    engine.run()
    assert engine.scheduler.counters.preemptions == 0 and engine.scheduler.kept.num_blocks == 0


def test_waiting_requests_break_only_caches_of_younger_programs(folder: Path) -> None:
    engine = Engine(folder)
    engine.learn()
    engine.add("busy", tokens(9, 16), 60)
    engine.step()
    engine.add("old", tokens(1, 128), 1, {"program_id": "old"})
    for _ in range(4):
        engine.step()
    kept = engine.scheduler.kept
    assert kept.num_blocks == 8
    engine.add("newcomer", tokens(4, 400), 1)
    engine.step()
    assert kept.num_blocks == 8 and "newcomer" not in engine.steps[-1]
    engine.run()
    assert "newcomer" in engine.finished and kept.num_blocks == 0


def test_cancelled_calls_are_not_kept(folder: Path) -> None:
    engine = Engine(folder)
    engine.learn()
    engine.add("turn1", tokens(1, 100), 50, {"program_id": "agent"})
    engine.step()
    engine.step()
    engine.abort("turn1")
    engine.run()
    assert engine.free_blocks == NUM_BLOCKS - 1


def test_a_reset_and_a_shutdown_release_them(folder: Path) -> None:
    engine = Engine(folder)
    engine.learn()
    engine.call("turn1", tokens(1, 128))
    assert engine.scheduler.reset_prefix_cache()
    assert engine.free_blocks == NUM_BLOCKS - 1
    engine.now_s += 1.0
    engine.call("turn2", tokens(2, 128))
    assert engine.free_blocks < NUM_BLOCKS - 1
    engine.scheduler.shutdown()
    assert engine.free_blocks == NUM_BLOCKS - 1


def _broken(*_: Any, **__: Any) -> None:
    raise OSError("broken")


@pytest.mark.parametrize("method", ["keep", "allocate_running", "allocate_waiting", "_make_room", "drop_expired"])
def test_a_fault_among_kept_caches_costs_no_request_and_no_block(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(folder)
    engine.learn()
    engine.call("turn1", tokens(1, 128))
    assert engine.scheduler.kept.num_blocks > 0
    monkeypatch.setattr(engine.scheduler.kept, method, _broken)
    engine.add("busy", tokens(3, 16), 8)
    engine.call("turn2", tokens(1, 128) + tokens(2, 16))
    engine.call("wide", tokens(4, 460), "other")
    engine.run()
    assert engine.scheduler.watchdog.fallen and {"turn2", "busy", "wide"} <= set(engine.finished)
    assert engine.free_blocks == NUM_BLOCKS - 1


def test_to_fall_raises_nothing_though_its_parts_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(folder)
    scheduler = engine.scheduler
    monkeypatch.setattr(scheduler.kept, "release_all", _broken)
    scheduler.step_log = SimpleNamespace(close=_broken, write=_broken)
    assert scheduler.reset_prefix_cache()
    monkeypatch.setattr(scheduler.ledger, "plan", _broken)
    engine.call("call", tokens(1, 20))
    assert scheduler.watchdog.fallen and "call" in engine.finished
    scheduler.shutdown()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_block_is_lost_however_programs_come_and_go(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    engine = Engine(folder, rng.choice(["program", "vtc > program", "program > slo"]), max_num_seqs=4)
    engine.learn(gap_s=rng.choice([0.1, 2.0]))
    history = {program: tokens(rng.randrange(100), 20) for program in "abcde"}
    names: list[str] = []
    for number in range(40):
        program = rng.choice([*"abcde", None])
        text = history[program] if program else tokens(seed + number, rng.randrange(1, 200))
        if program:
            history[program] = text = (text + tokens(number, rng.randrange(60)))[:400]
        names.append(f"r{number}")
        rested = [(rng.choice("xy"), rng.choice("abcde"))] * rng.randrange(2)
        meta = {"program_id": program, "tenant": rng.choice("xy"), "rested": rested}
        engine.add(names[-1], text, rng.randrange(1, 20), meta)
        for _ in range(rng.randrange(5)):
            engine.decide()
            if rng.random() < 0.1:
                engine.abort(rng.choice(names))
            engine.end()
        engine.now_s += rng.choice([0.0, 0.5, 20.0])
    engine.run()
    scheduler = engine.scheduler
    assert not scheduler.watchdog.fallen and len(scheduler.ledger) == 0
    assert engine.free_blocks + scheduler.kept.num_blocks >= NUM_BLOCKS - 1  # kept caches may share blocks
    assert scheduler.reset_prefix_cache() and engine.free_blocks == NUM_BLOCKS - 1
