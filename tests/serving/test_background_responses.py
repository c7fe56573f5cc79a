"""Background responses over a made-up chat: their deadline, and that draining waits for them."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from burrstone.batching.request import RequestMeta
from burrstone.serving.api.responses import ResponsesApi
from burrstone.serving.api.types import Event
from burrstone.serving.config import LimitsConfig
from burrstone.serving.edges.lifecycle import Lifecycle


class HeldChat:
    """A chat whose one chunk comes when told to; it keeps the metadata it was called with."""

    def __init__(self) -> None:
        self.metas: list[RequestMeta] = []
        self.go = asyncio.Event()

    async def __call__(self, body: dict[str, Any], meta: RequestMeta) -> AsyncGenerator[Event, None]:
        self.metas.append(meta)
        return self._chunks()

    async def _chunks(self) -> AsyncGenerator[Event, None]:
        await self.go.wait()
        choice = {"index": 0, "delta": {"content": "Hello."}, "finish_reason": "stop"}
        yield Event({"id": "c", "created": 0, "model": "m", "choices": [choice], "usage": None})


def body(*, background: bool, stream: bool = False) -> dict[str, Any]:
    return {"model": "m", "input": "Hello", "background": background, "stream": stream}


@pytest.mark.parametrize("background", [True, False])
async def test_only_a_background_response_outlives_the_deadline_of_its_call(background: bool) -> None:
    chat = HeldChat()
    chat.go.set()
    soon_s = time.monotonic() + 5.0
    api = ResponsesApi(chat, LimitsConfig(request_timeout_s=100.0), "reject")
    await api.create(body(background=background), RequestMeta("r", deadline_s=soon_s, asked_deadline_s=soon_s))
    deadline_s = chat.metas[0].deadline_s
    assert deadline_s is not None
    assert deadline_s > soon_s if background else deadline_s == soon_s
    assert chat.metas[0].asked_deadline_s == (None if background else soon_s)


@pytest.mark.parametrize("end", ["finish", "cancel at once", "cancel while it runs"])
async def test_draining_waits_for_a_background_response(end: str) -> None:
    chat, lifecycle = HeldChat(), Lifecycle()
    api = ResponsesApi(chat, LimitsConfig(), "reject", track=lifecycle.track)
    meta = RequestMeta("r")
    response = await api.create(body(background=True), meta)
    assert isinstance(response, dict)
    assert lifecycle.num_requests == 1 and not await lifecycle.wait_idle(0.0)
    if end == "finish":
        chat.go.set()
    else:
        if end == "cancel while it runs":
            await asyncio.sleep(0)
        await api.cancel(response["id"], meta)
    assert await lifecycle.wait_idle(30.0)
    stored = await api.retrieve(response["id"], meta, stream=False, starting_after=None)
    assert isinstance(stored, dict)
    assert stored["status"] == ("completed" if end == "finish" else "cancelled")
