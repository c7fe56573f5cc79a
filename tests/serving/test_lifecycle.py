"""starting -> ready -> draining, or failed: when requests may come in, and what draining waits for."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from burrstone.batching.errors import NotReady
from burrstone.serving.edges.lifecycle import Lifecycle

API: Any = SimpleNamespace()


def test_only_a_ready_replica_hands_out_its_api() -> None:
    lifecycle = Lifecycle()
    refusals = []
    for phase in ("starting", "draining", "failed"):
        if phase == "draining":
            lifecycle.close()
        elif phase == "failed":
            lifecycle.fail("the engine died")
        with pytest.raises(NotReady) as refused:
            lifecycle.api()
        assert refused.value.retry_after_s
        refusals.append((lifecycle.phase, refused.value.message))
    assert [phase for phase, _ in refusals] == ["starting", "draining", "failed"]
    assert len({message for _, message in refusals}) == 3
    lifecycle = Lifecycle()
    lifecycle.open(API)
    assert lifecycle.ready and lifecycle.api() is API


def test_a_drain_that_comes_while_starting_stays() -> None:
    lifecycle = Lifecycle()
    lifecycle.close()
    lifecycle.open(API)
    assert lifecycle.phase == "draining"


async def test_idle_means_that_every_request_has_ended() -> None:
    lifecycle = Lifecycle()
    assert await lifecycle.wait_idle(0.0)
    with lifecycle.track():
        with lifecycle.track():
            assert lifecycle.num_requests == 2
        waiting = asyncio.create_task(lifecycle.wait_idle(60.0))
        assert not await lifecycle.wait_idle(0.0)
        assert not waiting.done()
    assert await waiting
    assert lifecycle.num_requests == 0


async def test_waiting_ends_when_there_is_no_hope() -> None:
    lifecycle, dead = Lifecycle(), asyncio.Event()
    assert await lifecycle.wait_idle(3600.0, hopeless=lambda: True)
    with lifecycle.track():
        assert not await lifecycle.wait_idle(3600.0, hopeless=lambda: True)
        waiting = asyncio.create_task(lifecycle.wait_idle(3600.0, hopeless=dead.is_set))
        assert not await lifecycle.wait_idle(0.0)
        assert not waiting.done()
        dead.set()
        assert not await waiting


async def test_a_request_that_fails_has_ended_too() -> None:
    lifecycle = Lifecycle()
    with pytest.raises(RuntimeError, match="failed"), lifecycle.track():
        raise RuntimeError("failed")
    assert await lifecycle.wait_idle(0.0)


def test_what_ready_says() -> None:
    lifecycle = Lifecycle()
    lifecycle.detail = "compiling"
    with lifecycle.track():
        described = lifecycle.describe()
    assert described.pop("elapsed_s") >= 0
    assert described == {"status": "starting", "detail": "compiling", "requests": 1}
