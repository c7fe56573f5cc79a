"""Policies inside vLLM's scheduler, driven without a model: nothing is lost, vLLM's own order comes back after a fault."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from bare_scheduler import AnyText, BareEngine, make_scheduler, vllm_config
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from vllm.pooling_params import PoolingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from burrstone.batching.core.step_log import Arrived, Ended, read_log
from burrstone.batching.policies.engine_policy import Plan
from burrstone.batching.policies.plan import prefilling
from burrstone.serving.engine.scheduling.options import SchedulerOptions
from burrstone.serving.engine.scheduling.scheduler import BurrstoneAsyncScheduler, BurrstoneScheduler
from burrstone.serving.engine.scheduling.watchdog import Watchdog

BY_DEPTH = {1: (Scheduler, BurrstoneScheduler), 2: (AsyncScheduler, BurrstoneAsyncScheduler)}
POLICIES = ("fcfs", "slo", "vtc > slo", "priority > program", "sjf-rank", "program > slo")
Make = Callable[..., BareEngine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def make(folder: Path) -> Make:
    """An engine with our scheduler, or with vLLM's for policy None. `now` is its clock, in steps of a tenth of a second."""

    def engine(
        policy: str | None, *, depth: int = 1, log: Path | None = None, num_drafts: int = 0, **config: Any
    ) -> BareEngine:
        scheduler = make_scheduler(BY_DEPTH[depth][policy is not None], vllm_config(folder, **config))
        if policy is not None:
            options = SchedulerOptions(policy, step_log=None if log is None else str(log))
            scheduler.start_policy(options, clock=_ticks(), watchdog=Watchdog(slow_hook_s=60.0))
        return BareEngine(scheduler, depth=depth, num_drafts=num_drafts)

    return engine


def _ticks() -> Callable[[], float]:
    def ticks() -> Iterator[float]:
        now_s = 1000.0
        while True:
            yield now_s
            now_s += 0.05

    return ticks().__next__


def prompt(seed: int, num_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(3, 900), k=num_tokens)


def random_life(engine: BareEngine, seed: int, num_requests: int = 40) -> None:
    """Requests come and go at random, between steps and while one runs, until all have ended."""
    rng = random.Random(seed)
    here: list[str] = []
    compiling: list[Future[Any]] = []
    for number in range(num_requests):
        grammar: Future[Any] | None = Future() if rng.random() < 0.15 else None
        compiling += [] if grammar is None else [grammar]
        meta = {
            "tenant": f"t{rng.randrange(3)}",
            "priority": rng.randrange(2),
            "ttft_s": rng.choice([None, 0.2, 5.0]),
            "tpot_s": rng.choice([None, 0.1]),
            "program_id": rng.choice([None, "p", "q"]),
        }
        engine.add(f"r{number}", prompt(rng.randrange(6), rng.randrange(1, 150)), rng.randrange(1, 12), meta, grammar)
        here.append(f"r{number}")
        for _ in range(rng.randrange(3)):
            engine.decide()
            if rng.random() < 0.2:
                engine.abort(*rng.sample(here, min(2, len(here))))
            engine.settle()
        if rng.random() < 0.15:
            engine.abort(rng.choice(here))
        if compiling and rng.random() < 0.2:
            _compiled(compiling.pop(rng.randrange(len(compiling))), fails=rng.random() < 0.1)
    for grammar in compiling:
        _compiled(grammar, fails=False)
    engine.run()


def _compiled(grammar: Future[Any], *, fails: bool) -> None:
    if fails:
        grammar.set_exception(ValueError("no such grammar"))
    else:
        grammar.set_result(AnyText())


def check_at_rest(engine: BareEngine, num_blocks: int) -> None:
    scheduler = engine.scheduler
    assert len(scheduler.ledger) == 0 and not scheduler.watchdog.fallen
    assert scheduler.running == [] and not scheduler.waiting and not scheduler.requests
    assert (scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens) == (4, 48)
    assert scheduler.ledger.policy.tenants["active"].sum() == 0
    assert scheduler.reset_prefix_cache()
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == num_blocks - 1


@pytest.mark.parametrize("depth", [1, 2])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), num_blocks=st.sampled_from([16, 24, 64]))
@example(seed=37537831, num_blocks=16)
def test_fcfs_through_our_class_is_stock(make: Make, depth: int, seed: int, num_blocks: int) -> None:
    small = {"max_num_seqs": 4, "max_num_batched_tokens": 48, "num_blocks": num_blocks}
    stock, ours = make(None, depth=depth, **small), make("fcfs", depth=depth, **small)
    for engine in (stock, ours):
        random_life(engine, seed)
    assert ours.steps == stock.steps
    assert ours.outputs == stock.outputs and sorted(ours.finished) == sorted(stock.finished)
    check_at_rest(ours, num_blocks)


@pytest.mark.parametrize("depth", [1, 2])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(POLICIES), num_blocks=st.sampled_from([16, 24, 64]))
def test_nothing_is_lost_under_any_policy(make: Make, depth: int, seed: int, policy: str, num_blocks: int) -> None:
    engine = make(policy, depth=depth, max_num_seqs=4, max_num_batched_tokens=48, num_blocks=num_blocks)
    random_life(engine, seed)
    check_at_rest(engine, num_blocks)
    assert len(engine.finished) == len(set(engine.finished))
    assert all(step.keys() <= engine.outputs.keys() and sum(step.values()) <= 48 for step in engine.steps)


def test_answers_are_those_of_stock_under_any_policy(make: Make) -> None:
    outputs = []
    for policy in (None, *POLICIES):
        engine = make(policy, max_num_seqs=4, max_num_batched_tokens=48, num_blocks=32)
        for number in range(12):
            engine.add(f"r{number}", prompt(number, 20 + 9 * number), 5, {"tenant": f"t{number % 2}", "tpot_s": 0.1})
        engine.run()
        outputs.append(engine.outputs)
    assert all(found == outputs[0] for found in outputs)


def test_the_policy_decides_who_is_admitted(make: Make) -> None:
    engine = make("priority", max_num_seqs=1)
    for number, priority in enumerate((5, 5, 1, 3)):
        engine.add(f"r{number}", prompt(number, 10), 1, {"priority": priority})
    engine.run()
    assert engine.finished == ["r2", "r3", "r0", "r1"]


def test_pooling_requests_are_one_nameless_tenants(make: Make) -> None:
    scheduler = make("vtc > slo").scheduler
    for name in ("a", "b"):
        scheduler.add_request(Request(name, prompt(1, 10), None, PoolingParams(task="embed")))
    rows = scheduler.ledger.policy.requests[scheduler.ledger.rows(list(scheduler.waiting))]
    assert not scheduler.watchdog.fallen
    assert len(set(rows["tenant"])) == 1 and set(rows["priority"]) == {0} and set(rows["program"]) == {-1}


def test_who_waits_for_a_grammar_holds_up_nobody(make: Make) -> None:
    engine = make("priority", max_num_seqs=1)
    grammar: Future[Any] = Future()
    engine.add("blocked", prompt(1, 10), 1, {"priority": 0}, grammar)
    engine.add("first", prompt(2, 10), 2, {"priority": 2})
    engine.add("last", prompt(3, 10), 2, {"priority": 1})
    engine.step()
    assert engine.steps[-1].keys() == {"last"}
    grammar.set_result(AnyText())
    engine.run()
    assert engine.finished == ["last", "blocked", "first"]


def test_a_flooding_tenant_does_not_hold_up_another(make: Make) -> None:
    engine = make("vtc", max_num_seqs=2)
    for number in range(10):
        engine.add(f"flood{number}", prompt(number, 40), 4, {"tenant": "flood"})
    engine.step()
    engine.add("victim", prompt(99, 40), 4, {"tenant": "victim"})
    engine.run()
    assert engine.finished.index("victim") <= 2


def test_parked_requests_keep_cache_and_seat_and_come_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("slo", max_num_seqs=3, max_num_batched_tokens=32)
    engine.add("long", prompt(1, 200), 2)
    engine.step()
    scheduler = engine.scheduler
    computed = scheduler.running[0].num_computed_tokens
    real_plan = scheduler.ledger.plan

    def park_all(*args: Any, **kwargs: Any) -> Plan:
        plan: Plan = real_plan(*args, **kwargs)
        return plan._replace(parked=len(args[1]))

    monkeypatch.setattr(scheduler.ledger, "plan", park_all)
    for name in ("a", "b", "c"):
        engine.add(name, prompt(ord(name), 10), 8)
    engine.step()
    assert engine.steps[-1].keys() == {"a", "b"}, "the parked request holds one of three seats"
    assert [request.request_id for request in scheduler.running] == ["a", "b", "long"]
    assert scheduler.running[-1].num_computed_tokens == computed
    assert (scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens) == (3, 32)
    engine.decide()
    engine.abort("long", "b")
    engine.end()
    monkeypatch.undo()
    engine.run()
    assert sorted(engine.finished) == ["a", "c"] and len(scheduler.ledger) == 0


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("method", ["plan", "admitted", "served", "arrived", "ended", "preempted"])
def test_a_fault_anywhere_leaves_vllms_own_order(
    make: Make, depth: int, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make("program > slo", depth=depth, max_num_seqs=4, max_num_batched_tokens=48, num_blocks=24)
    scheduler = engine.scheduler
    for number in range(8):
        engine.add(f"early{number}", prompt(number, 60), 6, {"program_id": f"p{number % 3}"})
    for _ in range(4):
        engine.step()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError(method)

    monkeypatch.setattr(scheduler.ledger, method, broken)
    for number in range(8):
        engine.add(f"late{number}", prompt(50 + number, 90), 30)
    engine.run()
    assert len(engine.finished) == 16
    assert scheduler.watchdog.fallen and scheduler.counters.fallbacks == 1
    assert (scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens) == (4, 48)
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 23
    (line,) = [record for record in caplog.records if "switched off" in record.message]
    assert line.exc_info is not None and method in str(line.exc_info[1])


def test_a_hook_that_stays_slow_is_switched_off(make: Make) -> None:
    engine = make("slo", max_num_seqs=4)
    scheduler = engine.scheduler
    scheduler.watchdog = Watchdog(slow_hook_s=0.0, slow_steps=5)
    for number in range(6):
        engine.add(f"r{number}", prompt(number, 40), 6)
    engine.run()
    assert scheduler.watchdog.fallen and scheduler.counters.steps == 5
    assert len(engine.finished) == 6


def test_after_a_fall_nothing_is_remembered_of_any_request(make: Make) -> None:
    engine = make("slo", max_num_seqs=4)
    scheduler = engine.scheduler
    compiling: list[Future[Any]] = [Future(), Future()]
    engine.add("before", prompt(1, 40), 6, grammar=compiling[0])
    engine.add("running", prompt(2, 40), 6)
    engine.step()
    scheduler.watchdog = Watchdog(slow_hook_s=0.0, slow_steps=1)
    engine.step()
    assert scheduler.watchdog.fallen
    engine.add("after", prompt(3, 40), 6, grammar=compiling[1])
    assert scheduler._blocked == {} and len(scheduler.ledger) == 0
    for grammar in compiling:
        _compiled(grammar, fails=False)
    engine.run()
    assert sorted(engine.finished) == ["after", "before", "running"]


def test_rows_are_right_when_steps_accept_several_tokens(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("vtc > slo", num_drafts=3, max_num_seqs=4, max_num_batched_tokens=48)
    ledger = engine.scheduler.ledger
    real_plan, seen = ledger.plan, []

    def watched(waiting: Any, running: Any, requests: Any, **told: Any) -> Plan:
        plan: Plan = real_plan(waiting, running, requests, **told)
        for request in requests:
            row = ledger.policy.requests[ledger.entry(request).row]
            seen.append((int(row["output_tokens"]), len(engine.outputs[request.request_id]), bool(prefilling(row))))
            assert int(row["computed_tokens"]) == request.num_computed_tokens
            assert prefilling(row) == (request.num_computed_tokens < request.num_tokens - 1)
        return plan

    monkeypatch.setattr(ledger, "plan", watched)
    for number in range(8):
        engine.add(f"r{number}", prompt(number, 30 + 10 * number), 20, {"tenant": f"t{number % 2}", "tpot_s": 0.1})
    engine.run()
    assert not engine.scheduler.watchdog.fallen and len(engine.finished) == 8
    assert {len(tokens) for tokens in engine.outputs.values()} == {20}
    assert all(row == made for row, made, _ in seen)
    assert {prefill for *_, prefill in seen} == {True, False}
    service = ledger.policy.tenants["service"][:2]
    assert service.sum() == sum(30 + 10 * number for number in range(8)) + 2 * 8 * 20


def test_counters_travel_with_vllms_statistics(make: Make) -> None:
    engine = make("slo", max_num_seqs=4, max_num_batched_tokens=48, num_blocks=12)
    for number in range(6):
        engine.add(f"r{number}", prompt(number, 40), 30)
    engine.run()
    told = engine.scheduler.make_stats().num_kv_fetch_reqs_by_stage
    assert told["burrstone_steps"] >= len(engine.steps) - 1 and told["burrstone_fallbacks"] == 0
    assert told["burrstone_preemptions"] > 0


def test_the_time_of_a_step_in_the_hook_has_all_its_parts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("slo", max_num_seqs=4)
    ledger, now_s = engine.scheduler.ledger, [0.0]
    monkeypatch.setattr("burrstone.serving.engine.scheduling.scheduler.time.perf_counter", lambda: now_s[0])
    for method, seconds in (("arrived", 1.0), ("plan", 10.0), ("served", 100.0), ("ended", 1000.0)):

        def slow(*args: Any, real: Any = getattr(ledger, method), seconds: float = seconds, **kwargs: Any) -> Any:
            now_s[0] += seconds
            return real(*args, **kwargs)

        monkeypatch.setattr(ledger, method, slow)
    engine.add("a", prompt(1, 10), 2)
    engine.add("b", prompt(2, 10), 1)
    told = []
    for _ in range(2):
        engine.step()
        told.append(engine.scheduler.counters.hook_ns / 1e9)
    assert told == [1112.0, 1110.0]


@pytest.mark.parametrize("depth", [1, 2])
def test_the_step_log_tells_every_step_and_every_request(make: Make, depth: int, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    engine = make("vtc > slo", depth=depth, log=log, max_num_seqs=4, max_num_batched_tokens=48, num_blocks=24)
    random_life(engine, 7)
    engine.scheduler.shutdown()
    header, records = read_log(log.read_text().splitlines())
    steps = list(records)
    assert (header.policy, header.max_num_seqs, header.num_blocks) == ("vtc > slo", 4, 23)
    assert [step.num_tokens for step in steps] == [sum(step.values()) for step in engine.steps]
    assert [step.step for step in steps] == list(range(len(steps)))
    assert all(step.elapsed_s is not None and step.hook_s is not None and step.load is not None for step in steps)
    events = [event for step in steps for event in step.events]
    arrived = [event.seq for event in events if isinstance(event, Arrived)]
    ended = [event.seq for event in events if isinstance(event, Ended)]
    assert arrived == list(range(40))
    # Who ended after the last step stands in no record.
    assert set(ended) <= set(arrived) and len(ended) == len(set(ended)) >= 36


def test_who_is_cancelled_while_a_step_runs_ends_after_the_finished_with_its_token(make: Make, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    engine = make("vtc", log=log, max_num_seqs=4, max_num_batched_tokens=64)
    engine.add("finishes", prompt(1, 10), 1)
    engine.add("cancelled", prompt(2, 10), 9)
    engine.add("stays", prompt(3, 10), 3)
    engine.decide()
    engine.abort("cancelled")
    engine.end()
    engine.run()
    engine.scheduler.shutdown()
    _, records = read_log(log.read_text().splitlines())
    events = [event for step in records for event in step.events if isinstance(event, Ended)]
    assert events[:2] == [
        Ended(0, cancelled=False, output_tokens=1),
        Ended(1, cancelled=True, output_tokens=1, during_step=True),
    ]
