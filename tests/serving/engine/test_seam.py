"""The seam over a made-up engine: admission, metadata, deadlines, cancellation, metering, death."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_engine import Bench, call, drain, output

from burrstone.batching.errors import DeadlineExceeded, NotReady, Overloaded, ServeError
from burrstone.batching.request import METADATA_KEY
from burrstone.serving.config import SchedulerConfig
from burrstone.serving.edges.metadata import request_meta
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.seam import Call, current_call

_FULL = {"class": "default", "reason": "queue_full"}


async def test_tokens_are_metered() -> None:
    bench, here = Bench(), call()
    bench.send(output(0), output(2), output(3, finished=True))
    assert await drain(bench.start(here)) == 3
    assert (here.prompt_tokens, here.cached_tokens, here.output_tokens) == (3, 2, 5)
    assert here.first_token_s is not None and bench.metric("time_to_first_token_seconds_count") == 1
    assert bench.idle() and not here.active and not bench.engine.aborted


async def test_every_prompt_of_a_call_is_metered() -> None:
    bench, here = Bench(), call()
    for name in ("a", "b"):
        bench.send(output(1), output(1, finished=True), request_id=name)
        await drain(bench.start(here, name))
    assert (here.prompt_tokens, here.cached_tokens, here.output_tokens) == (6, 4, 4)


async def test_a_whole_answer_says_nothing_of_its_first_token() -> None:
    bench, here = Bench(), call()
    bench.send(output(5, finished=True))
    await drain(bench.start(here, output_kind=vllm.RequestOutputKind.FINAL_ONLY))
    assert here.output_tokens == 5 and bench.metric("time_to_first_token_seconds_count") == 0


async def test_the_deadline_runs_while_a_grammar_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = threading.Event()
    monkeypatch.setattr(vllm, "check_grammar", lambda *_: checked.wait(30))
    bench, here = Bench(), call(deadline_s=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded, match="grammar"):
        await drain(bench.start(here, structured_outputs={"regex": "a"}))
    checked.set()
    assert not bench.engine.seen and bench.idle()


async def test_metadata_reaches_the_scheduler() -> None:
    bench = Bench()
    here = call(
        tenant="anna",
        weight=2.0,
        priority=3,
        ttft_s=0.5,
        tpot_s=0.05,
        session_id="s",
        program_id="p",
        deadline_s=time.monotonic() + 3600,
        asked_deadline_s=time.monotonic() + 60,
    )
    bench.send(output(1, finished=True))
    forged = {"tenant": "root", "weight": 1e9, "priority": -1000, "extra": 1}
    await drain(bench.start(here, extra_args={"kept": 1, METADATA_KEY: forged}))
    seen = bench.engine.seen["r"]
    assert (seen.kwargs["priority"], seen.kwargs["session_id"]) == (3, "s")
    assert seen.params.extra_args["kept"] == 1
    metadata = seen.params.extra_args[METADATA_KEY]
    assert metadata["deadline_unix_s"] == pytest.approx(time.time() + 60, abs=30)
    assert metadata | {"deadline_unix_s": 0} == {
        "tenant": "anna",
        "weight": 2.0,
        "priority": 3,
        "ttft_s": 0.5,
        "tpot_s": 0.05,
        "deadline_unix_s": 0,
        "program_id": "p",
        "session": "s",
        "rested": [],
    }


async def test_the_next_request_tells_who_rests_but_for_its_own_program() -> None:
    bench = Bench()
    for number in range(1030):
        bench.seam.rest(call(tenant="anna", program_id=f"p{number}").meta, rests=True)
    bench.seam.rest(call(tenant="anna").meta, rests=True)
    bench.seam.rest(call(tenant="anna", program_id="p9").meta, rests=False)
    told = []
    for program in ("p1029", None):
        bench.send(output(1, finished=True))
        await drain(bench.start(call(tenant="anna", program_id=program)))
        told.append(bench.engine.seen["r"].params.extra_args[METADATA_KEY]["rested"])
    assert told == [[("anna", f"p{number}") for number in range(6, 1029) if number != 9], []]


async def test_a_program_does_not_rest_while_another_call_of_it_runs() -> None:
    bench = Bench()
    stream = bench.start(call(tenant="anna", program_id="p"))
    bench.send(output(1))
    await anext(stream)
    bench.seam.rest(call(tenant="anna", program_id="p").meta, rests=True)
    await stream.aclose()
    bench.send(output(1, finished=True))
    await drain(bench.start(call(tenant="anna")))
    assert bench.engine.seen["r"].params.extra_args[METADATA_KEY]["rested"] == []


async def test_tenants_share_no_prefix_cache() -> None:
    salts = []
    for tenant in ("anna", "bob", "anna"):
        bench = Bench()
        bench.send(output(1, finished=True))
        await drain(bench.start(call(tenant=tenant)))
        salts.append(bench.engine.seen["r"].prompt["cache_salt"])
        assert bench.engine.seen["r"].prompt["prompt_token_ids"] == [1, 2, 3]
    assert salts[0] == salts[2] != salts[1]


@pytest.mark.parametrize(("default", "expected"), [(None, 100), (7, 7), (1000, 100)])
async def test_the_default_limit_only_lowers(default: int | None, expected: int) -> None:
    bench, here = Bench(), call()
    here.default_max_tokens = default
    bench.send(output(1, finished=True))
    await drain(bench.start(here))
    assert bench.engine.seen["r"].params.max_tokens == expected


@pytest.mark.parametrize("num_read", [0, 1])
async def test_closing_the_stream_closes_the_engines(num_read: int) -> None:
    bench, here = Bench(), call()
    bench.send(output(1), output(1))
    outputs = bench.start(here)
    for _ in range(num_read):
        await anext(outputs)
    await outputs.aclose()
    assert bench.engine.closed == ["r"] * num_read
    assert bench.idle() and not here.active


async def test_a_cancelled_reader_frees_its_place() -> None:
    bench, here = Bench(), call()
    reading = asyncio.create_task(drain(bench.start(here)))
    assert await bench.engine.arrivals.get() == "r"
    assert bench.seam.num_running == 1
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert bench.engine.closed == ["r"] and bench.idle()
    assert bench.metric("generations_cancelled_total") == 1
    assert here.failure is None


async def test_a_call_that_is_abandoned_is_aborted_once() -> None:
    bench, here = Bench(), call()
    bench.send(output(1))
    outputs = bench.start(here)
    await anext(outputs)
    await bench.seam.abandon(here)
    assert bench.engine.aborted == ["r"]
    assert await drain(outputs) == 1
    await bench.seam.abandon(here)
    assert bench.engine.aborted == ["r"] and bench.idle()


async def test_a_deadline_that_has_passed_never_reaches_the_engine() -> None:
    bench, here = Bench(), call(deadline_s=time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        await drain(bench.start(here))
    assert not bench.engine.seen and bench.idle()
    assert isinstance(here.failure, DeadlineExceeded)


async def test_a_deadline_aborts_and_says_so() -> None:
    bench, here = Bench(), call(deadline_s=time.monotonic() + 0.05)
    bench.send(output(1))
    with pytest.raises(DeadlineExceeded):
        await drain(bench.start(here))
    assert bench.engine.aborted == ["r"] and bench.idle()


async def test_the_servers_own_limit_is_kept_and_is_no_deadline_to_the_scheduler() -> None:
    """As an HTTP request comes: it asks for no deadline, and is stopped at the server's limit."""
    meta = request_meta(SchedulerConfig(), lambda _: None, tenant="anna", request_id="x", timeout_s=0.05)
    bench = Bench()
    bench.send(output(1))
    with pytest.raises(DeadlineExceeded):
        await drain(bench.start(Call(meta)))
    assert bench.engine.seen["r"].params.extra_args[METADATA_KEY]["deadline_unix_s"] is None
    assert bench.engine.aborted == ["r"] and bench.idle()


async def test_a_request_that_ends_in_time_is_not_aborted_later() -> None:
    bench = Bench()
    bench.send(output(1, finished=True))
    await drain(bench.start(call(deadline_s=time.monotonic() + 0.02)))
    await asyncio.sleep(0.05)  # past the deadline
    assert bench.engine.aborted == []


async def test_a_full_queue_refuses_and_the_next_place_is_free_again() -> None:
    bench = Bench(max_queued_requests=1)
    bench.send(output(1), request_id="first")
    first = bench.start(call(), "first")
    await anext(first)
    with pytest.raises(Overloaded) as refused:
        await drain(bench.start(call(), "second"))
    assert refused.value.retry_after_s
    assert "second" not in bench.engine.seen and bench.metric("generations_refused_total", **_FULL) == 1
    await first.aclose()
    bench.send(output(1, finished=True), request_id="third")
    assert await drain(bench.start(call(), "third")) == 1


async def test_pooling_is_admitted_and_metered_as_generating_is() -> None:
    bench, here = Bench(), call(priority=2)
    pooled = SimpleNamespace(outputs=object(), finished=True, prompt_token_ids=[1, 2, 3], num_cached_tokens=0)
    bench.send(pooled)
    current_call.set(here)
    assert await drain(bench.seam.encode({"prompt_token_ids": [1, 2, 3]}, object(), "r")) == 1
    assert bench.engine.seen["r"].kwargs["priority"] == 2
    assert (here.prompt_tokens, here.output_tokens) == (3, 0) and bench.idle()
    bench.engine.errored = True
    with pytest.raises(NotReady):
        await drain(bench.seam.encode({"prompt_token_ids": [1]}, object(), "s"))


async def test_a_dead_engine_takes_nothing() -> None:
    bench = Bench()
    bench.engine.errored = True
    with pytest.raises(NotReady, match="died"):
        await drain(bench.start(call()))
    assert not bench.engine.seen and bench.idle()


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (vllm.EngineDeadError(), NotReady),
        (vllm.QueueOverflowError(), Overloaded),
        (Overloaded("full"), Overloaded),
        (ValueError("vLLM's own words"), None),
    ],
)
async def test_what_the_engine_raises_is_remembered(error: Exception, failure: type[ServeError] | None) -> None:
    """vLLM's serving objects turn it into an error frame; the call keeps what may be said in its place."""
    bench, here = Bench(), call()
    bench.send(output(1), error)
    with pytest.raises(type(error)):
        await drain(bench.start(here))
    assert (type(here.failure) if here.failure else None) is failure
    assert bench.idle()


async def test_ending_all_tells_every_request_why() -> None:
    bench = Bench()
    calls = {name: call() for name in ("a", "b")}
    readers = [asyncio.create_task(drain(bench.start(one, name))) for name, one in calls.items()]
    assert {await bench.engine.arrivals.get() for _ in calls} == calls.keys()
    await bench.seam.end_running(NotReady("shutting down"))
    ended = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(one) for one in ended] == [NotReady, NotReady]
    assert bench.idle()


# What may happen to one of three requests, in whatever order.
_STEP = st.tuples(st.integers(0, 2), st.sampled_from(["tokens", "finish", "fail", "die", "cancel", "abandon"]))


@given(st.lists(_STEP, max_size=12), st.integers(1, 3))
@settings(deadline=None, max_examples=80)
def test_no_order_of_events_leaks_a_place(steps: list[tuple[int, str]], max_queued: int) -> None:
    async def play() -> None:
        bench = Bench(max_queued_requests=max_queued)
        calls = [call() for _ in range(3)]
        readers = [asyncio.create_task(drain(bench.start(one, str(i)))) for i, one in enumerate(calls)]
        events = {"tokens": output(2), "finish": output(1, finished=True), "fail": ValueError("x")}
        for number, event in steps:
            await asyncio.sleep(0)
            if event == "cancel":
                readers[number].cancel()
            elif event == "abandon":
                await bench.seam.abandon(calls[number])
            else:
                bench.send(events.get(event) or vllm.EngineDeadError(), request_id=str(number))
            assert bench.seam.num_running == bench.metric("generations_running")
        await asyncio.sleep(0)
        for number in range(3):
            bench.send(output(1, finished=True), request_id=str(number))
        ended = await asyncio.gather(*readers, return_exceptions=True)
        expected = int, Overloaded, asyncio.CancelledError, ValueError, vllm.EngineDeadError
        assert all(isinstance(one, expected) for one in ended)
        assert sum(isinstance(one, Overloaded) for one in ended) == 3 - max_queued
        assert bench.idle() and not any(one.active for one in calls)
        assert sorted(bench.engine.closed) == sorted(bench.engine.seen)

    asyncio.run(play())
