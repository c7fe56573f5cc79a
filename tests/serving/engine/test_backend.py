"""The backend over made-up vLLM handlers: cancellation, and what is logged of a failure."""

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from burrstone.batching.request import RequestMeta
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.backend import Backend, VllmError
from burrstone.serving.engine.seam import Call

SECRET = "the caller's secret"
CHAT = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}


def backend(create: Callable[..., Any]) -> Backend:
    handlers: Any = SimpleNamespace(openai_serving_chat=SimpleNamespace(create_chat_completion=create))
    seam: Any = SimpleNamespace()
    return Backend(seam, handlers, ("generate",))


def call() -> Call:
    return Call(RequestMeta("request-1"))


async def test_a_cancelled_call_is_cancelled_whatever_vllm_answers() -> None:
    started = asyncio.Event()

    async def create(request: Any, raw: Any) -> Any:
        try:
            started.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return vllm.create_error_response("Client disconnected")

    task = asyncio.ensure_future(backend(create).chat(dict(CHAT), call()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await backend(create).chat(dict(CHAT), call())


@pytest.mark.parametrize(
    ("error", "status", "level"),
    [
        (KeyError(SECRET), 500, logging.ERROR),
        (AssertionError(SECRET), 500, logging.ERROR),
        (ValueError(SECRET), 400, logging.WARNING),
        (TypeError(SECRET), 400, logging.WARNING),
        (vllm.VLLMClientError(SECRET), 400, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_vllm_did_not_mean_to_raise_is_logged_without_text(
    error: Exception, status: int, level: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def create(request: Any, raw: Any) -> Any:
        raise error

    with caplog.at_level(logging.DEBUG, "burrstone"), pytest.raises(VllmError) as raised:
        await backend(create).chat(dict(CHAT), call())
    assert raised.value.raw["error"]["code"] == status
    records = [record for record in caplog.records if record.name == "burrstone.engine"]
    assert [record.levelno for record in records] == ([] if level is None else [level])
    for record in records:
        text = logging.Formatter().format(record)
        assert "request-1" in text and type(error).__name__ in text and "test_backend.py" in text
        assert SECRET not in text


async def test_a_request_that_vllm_does_not_parse_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def create(request: Any, raw: Any) -> Any:
        raise AssertionError("never called")

    with caplog.at_level(logging.DEBUG, "burrstone"), pytest.raises(VllmError):
        await backend(create).chat({"model": "m"}, call())
    assert not [record for record in caplog.records if record.name == "burrstone.engine"]
