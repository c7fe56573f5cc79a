"""Every call is metered once, however it ends, and completions report what all of their prompts found in the cache."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, ClassVar, cast

import pytest
from prometheus_client import CollectorRegistry

from burrstone.batching.errors import InvalidRequest
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.service import OpenAIService
from burrstone.serving.api.types import JsonObject
from burrstone.serving.config import ServeConfig
from burrstone.serving.engine.backend import Backend, VllmError
from burrstone.serving.engine.seam import Call
from burrstone.serving.metrics import ApiMetrics

META = RequestMeta(request_id="r", tenant="t")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TEXTS = {"model": "m", "prompt": ["a", "b"]}
METERED = {"prompt": 40.0, "cached": 20.0, "output": 3.0}
USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43, "prompt_tokens_details": {"cached_tokens": 4}}
COMPLETION = {"id": "cmpl-1", "created": 1, "choices": []}


class Fake:
    """A backend whose call has used tokens when it answers, fails or waits; vLLM's usage knows only the last prompt."""

    model_names = ("m",)
    adapters: ClassVar[dict[str, Any]] = {}

    def __init__(self, end: str) -> None:
        self.end = end
        self.waiting = asyncio.Event()

    async def _run(self, kwargs: JsonObject, call: Call) -> Any:
        call.prompt_tokens, call.cached_tokens, call.output_tokens = 40, 20, 3
        if self.end == "fail":
            raise VllmError({"error": {"code": 400, "message": "no"}})
        if self.end == "wait":
            self.waiting.set()
            await asyncio.Event().wait()
        return self._chunks() if kwargs.get("stream") else COMPLETION | {"usage": USAGE, "data": []}

    async def _chunks(self) -> AsyncGenerator[JsonObject, None]:
        yield COMPLETION
        yield COMPLETION | {"usage": USAGE}

    chat = completions = embeddings = _run


def service_of(backend: Fake) -> tuple[OpenAIService, CollectorRegistry]:
    registry = CollectorRegistry()
    return OpenAIService(cast(Backend, backend), ServeConfig(), ApiMetrics(registry), contextlib.nullcontext), registry


def metered(registry: CollectorRegistry) -> dict[str, float | None]:
    return {
        kind: registry.get_sample_value("burrstone_tokens_total", {"tenant": "t", "kind": kind}) for kind in METERED
    }


OPERATIONS = [("chat", CHAT), ("completions", TEXTS), ("embeddings", {"model": "m", "input": "a"})]


@pytest.mark.parametrize(("operation", "body"), OPERATIONS)
async def test_a_failed_call_is_metered(operation: str, body: JsonObject) -> None:
    service, registry = service_of(Fake("fail"))
    with pytest.raises(InvalidRequest):
        await getattr(service, operation)(body, META)
    assert metered(registry) == METERED


@pytest.mark.parametrize(("operation", "body"), OPERATIONS)
async def test_an_abandoned_call_is_metered(operation: str, body: JsonObject) -> None:
    backend = Fake("wait")
    service, registry = service_of(backend)
    task = asyncio.ensure_future(getattr(service, operation)(body, META))
    await backend.waiting.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert metered(registry) == METERED


@pytest.mark.parametrize(("operation", "body"), OPERATIONS[1:])
async def test_an_answered_call_is_metered_once(operation: str, body: JsonObject) -> None:
    service, registry = service_of(Fake("answer"))
    await getattr(service, operation)(body, META)
    assert metered(registry) == METERED


async def test_completions_report_the_cached_tokens_of_every_prompt() -> None:
    service, registry = service_of(Fake("answer"))
    whole = await service.completions(TEXTS, META)
    assert isinstance(whole, dict)
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 20
    stream = await service.completions(TEXTS | {"stream": True, "stream_options": {"include_usage": True}}, META)
    assert not isinstance(stream, dict)
    events = [event.data async for event in stream]
    assert events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 20
    assert metered(registry) == {kind: 2 * count for kind, count in METERED.items()}
