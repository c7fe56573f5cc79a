"""The gate inside the seam, over a made-up engine: who waits, who is shortened, and that every way out frees the seat."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_engine import Bench, call, drain, output

from burrstone.batching.errors import ClientGone, DeadlineExceeded, NotReady, Overloaded
from burrstone.serving.config import SchedulerConfig
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.gate import NOTICE


def scheduler(**keys: Any) -> SchedulerConfig:
    return SchedulerConfig.model_validate(keys)


def reading(bench: Bench, name: str, **meta: Any) -> "asyncio.Task[int]":
    return asyncio.create_task(drain(bench.start(call(**meta), name)))


async def settle() -> None:
    """Until every task has gone as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_waits_until_the_other_ends() -> None:
    bench = Bench(scheduler(max_running=1))
    first, second = reading(bench, "first"), reading(bench, "second")
    await settle()
    assert list(bench.engine.seen) == ["first"] and bench.metric("gate_waiting", **{"class": "default"}) == 1
    bench.send(output(1, finished=True), request_id="first")
    bench.send(output(1, finished=True), request_id="second")
    assert await first == 1 and await second == 1
    assert bench.metric("gate_wait_seconds_count", **{"class": "default"}) == 2
    assert bench.metric("gate_waiting", **{"class": "default"}) == 0 and bench.idle()


async def test_choices_take_a_seat_each() -> None:
    bench = Bench(scheduler(max_running=3))
    many = asyncio.create_task(drain(bench.start(call(), "many", n=2)))
    more = asyncio.create_task(drain(bench.start(call(), "more", n=2)))
    await settle()
    assert list(bench.engine.seen) == ["many"]
    for name in ("many", "more"):
        bench.send(output(1, finished=True), request_id=name)
    assert await many == 1 and await more == 1


async def test_a_deadline_that_passes_while_waiting() -> None:
    bench = Bench(scheduler(max_running=1))
    first = reading(bench, "first")
    await settle()
    soon_s = asyncio.get_running_loop().time() + 0.02  # the loop's clock is time.monotonic
    with pytest.raises(DeadlineExceeded, match="waited for its turn"):
        await reading(bench, "second", deadline_s=soon_s)
    assert "second" not in bench.engine.seen
    bench.send(output(1, finished=True), request_id="first")
    assert await first == 1 and bench.idle()


async def test_who_is_abandoned_while_waiting_waits_no_longer() -> None:
    bench, here = Bench(scheduler(max_running=1)), call()
    first = reading(bench, "first")
    await settle()
    second = asyncio.create_task(drain(bench.start(here, "second")))
    await settle()
    await bench.seam.abandon(here)
    with pytest.raises(ClientGone):
        await second
    bench.send(output(1, finished=True), request_id="first")
    assert await first == 1 and bench.idle()


async def test_at_the_end_those_who_wait_are_told_too() -> None:
    bench = Bench(scheduler(max_running=1))
    readers = [reading(bench, name) for name in ("running", "waiting", "too")]
    await settle()
    await bench.seam.end_running(NotReady("shutting down"))
    ended = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(one) for one in ended] == [NotReady] * 3
    assert list(bench.engine.seen) == ["running"] and bench.idle()


async def test_a_full_house_makes_room_for_who_has_less() -> None:
    bench = Bench(scheduler(max_running=1), max_queued_requests=4)
    flood = [reading(bench, f"flood{number}", tenant="flood") for number in range(4)]
    await settle()
    quiet = reading(bench, "quiet", tenant="quiet")
    await settle()
    pushed_out = flood.pop()
    with pytest.raises(Overloaded, match="full") as refused:
        await pushed_out
    assert refused.value.retry_after_s
    with pytest.raises(Overloaded, match="in flight"):
        await reading(bench, "more", tenant="flood")
    assert bench.metric("generations_refused_total", **{"class": "default", "reason": "pushed_out"}) == 1
    for name in ("quiet", *(f"flood{number}" for number in range(3))):
        bench.send(output(1, finished=True), request_id=name)
    assert await asyncio.gather(*flood, quiet) == [1] * 4
    assert list(bench.engine.seen)[1] == "quiet" and bench.idle()


async def test_a_full_house_says_when_a_place_will_come_free(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, now_s = Bench(scheduler(max_running=1), max_queued_requests=2), 0.0
    monkeypatch.setattr(bench.seam.gate, "_clock", lambda: now_s)
    slow = reading(bench, "slow")
    await settle()
    with pytest.raises(Overloaded) as unknown:
        await asyncio.gather(reading(bench, "waiting"), reading(bench, "refused"))
    now_s = 40.0
    for name in ("slow", "waiting"):
        bench.send(output(1, finished=True), request_id=name)
    await slow
    await settle()
    held = [reading(bench, name) for name in ("running", "in line")]
    await settle()
    with pytest.raises(Overloaded) as known:
        await reading(bench, "refused too")
    for name in ("running", "in line"):
        bench.send(output(1, finished=True), request_id=name)
    await asyncio.gather(*held)
    assert unknown.value.retry_after_s == 1.0
    assert 1.0 < (known.value.retry_after_s or 0.0) <= 40.0  # one took 40 s, one no time at all


@pytest.mark.parametrize(("output_weight", "third"), [(2.0, "b2"), (0.0, "a2")])
async def test_the_gate_weighs_tokens_by_the_schedulers_knobs(output_weight: float, third: str) -> None:
    bench = Bench(scheduler(max_running=1, knobs={"prompt_weight": 1.0, "output_weight": output_weight}))
    held = reading(bench, "held", tenant="other")
    await settle()
    asked = [("a1", "a", 1000), ("b1", "b", 1), ("a2", "a", 1), ("b2", "b", 1)]
    waiting = []
    for name, tenant, max_tokens in asked:
        waiting.append(asyncio.create_task(drain(bench.start(call(tenant=tenant), name, max_tokens=max_tokens))))
        await settle()
    bench.send(output(1, finished=True), request_id="held")
    bench.send(output(900, finished=True), request_id="a1")
    for name in ("b1", "a2", "b2"):
        bench.send(output(1, finished=True), request_id=name)
    await asyncio.gather(held, *waiting)
    assert list(bench.engine.seen)[3] == third


async def test_a_degraded_request_asks_the_engine_for_less_and_says_so() -> None:
    bench = Bench(scheduler(admission="brownout", max_running=1))
    first, here = reading(bench, "first"), call()
    await settle()
    second = asyncio.create_task(drain(bench.start(here, "second", max_tokens=1000)))
    await settle()
    for name in ("first", "second"):
        bench.send(output(1, finished=True), request_id=name)
    await asyncio.gather(first, second)
    assert (bench.engine.seen["first"].params.max_tokens, bench.engine.seen["second"].params.max_tokens) == (100, 256)
    assert here.meta.notices == {NOTICE: "256"}
    assert bench.metric("generations_degraded_total", **{"class": "default"}) == 1


async def test_a_first_token_that_would_come_too_late_is_refused() -> None:
    bench = Bench(scheduler(admission="predictive", max_running=1, default={"ttft_s": 1e-9}))
    for number in range(8):
        bench.send(output(1), output(1, finished=True), request_id=str(number))
        await reading(bench, str(number), ttft_s=1e-9)
    held = reading(bench, "held")
    await settle()
    with pytest.raises(Overloaded, match="first token") as refused:
        await reading(bench, "refused", ttft_s=1e-9)
    assert refused.value.retry_after_s and refused.value.retry_after_s > 0
    untargeted = reading(bench, "no target")
    for name in ("held", "no target"):
        bench.send(output(1, finished=True), request_id=name)
    assert await held == await untargeted == 1


_STEP = st.tuples(st.integers(0, 5), st.sampled_from(["tokens", "finish", "fail", "die", "cancel", "abandon"]))


@given(st.lists(_STEP, max_size=20), st.integers(1, 3), st.integers(2, 6))
@settings(deadline=None, max_examples=80)
def test_no_order_of_events_loses_a_seat(steps: list[tuple[int, str]], max_running: int, max_queued: int) -> None:
    """Six requests of three tenants: never more run than may, never does one wait beside a free seat."""

    async def play() -> None:
        bench = Bench(scheduler(max_running=max_running), max_queued_requests=max_queued)
        calls = [call(tenant=str(number % 3)) for number in range(6)]
        readers = [asyncio.create_task(drain(bench.start(one, str(i)))) for i, one in enumerate(calls)]
        for number, event in steps:
            await settle()
            inside = len(bench.engine.seen) - len(bench.engine.closed)
            waiting = bench.metric("gate_waiting", **{"class": "default"}) or 0
            assert inside <= max_running and (waiting == 0 or inside == max_running)
            if event == "cancel":
                readers[number].cancel()
            elif event == "abandon":
                await bench.seam.abandon(calls[number])
            else:
                events = {"tokens": output(2), "finish": output(1, finished=True), "fail": ValueError("x")}
                bench.send(events.get(event) or vllm.EngineDeadError(), request_id=str(number))
        for number in range(6):
            bench.send(output(1, finished=True), request_id=str(number))
        await asyncio.gather(*readers, return_exceptions=True)
        assert bench.idle() and bench.metric("gate_waiting", **{"class": "default"}) in (0, None)
        assert sorted(bench.engine.closed) == sorted(bench.engine.seen)

    asyncio.run(play())
