"""vLLM's own serving objects, built in process over the seam and spoken to in plain JSON."""

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any

import msgspec
import pydantic

from burrstone.batching.errors import ServeError, Unsupported
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.seam import Call, EngineSeam, current_call, known_failure

log = logging.getLogger("burrstone.engine")
JsonObject = dict[str, Any]
_DATA_PREFIX = "data: "
_DONE = "[DONE]"


class VllmError(Exception):
    """vLLM refused or failed; `raw` is its ErrorResponse as JSON, whose error.code is the HTTP status as a number."""

    def __init__(self, raw: JsonObject) -> None:
        super().__init__(raw.get("error", raw))
        self.raw = raw


class Backend:
    """Runs one request through vLLM. Keyword arguments are those of vLLM's request classes."""

    def __init__(self, seam: EngineSeam, handlers: Any, supported_tasks: tuple[str, ...]) -> None:
        self.seam = seam
        self.supported_tasks = supported_tasks
        self._handlers = handlers

    @classmethod
    async def create(cls, seam: EngineSeam, arguments: Any) -> "Backend":
        """Build vLLM's serving objects; `arguments` is the namespace its own server would be given."""
        tasks = tuple(await seam.get_supported_tasks())
        return cls(seam, await vllm.build_handlers(seam, arguments, tasks), tasks)

    @property
    def model_names(self) -> list[str]:
        return [path.name for path in self._handlers.openai_serving_models.base_model_paths]

    @property
    def adapters(self) -> dict[str, Any]:
        """LoRA adapter name -> vLLM's LoRARequest."""
        return dict(self._handlers.openai_serving_models.lora_requests)

    @property
    def max_model_len(self) -> int:
        return int(self.seam.model_config.max_model_len)

    def generates(self) -> bool:
        return "generate" in self.supported_tasks

    async def chat(self, kwargs: JsonObject, call: Call) -> JsonObject | AsyncGenerator[JsonObject, None]:
        """One chat completion: a response, or a generator of chunks when kwargs["stream"]."""
        handler = self._generating(self._handlers.openai_serving_chat, "chat completions")
        return await self._run(vllm.ChatCompletionRequest, handler.create_chat_completion, kwargs, call)

    async def completions(self, kwargs: JsonObject, call: Call) -> JsonObject | AsyncGenerator[JsonObject, None]:
        """One text completion: a response, or a generator of chunks when kwargs["stream"]."""
        handler = self._generating(self._handlers.openai_serving_completion, "completions")
        return await self._run(vllm.CompletionRequest, handler.create_completion, kwargs, call)

    async def embeddings(self, kwargs: JsonObject, call: Call) -> JsonObject:
        """Embeddings with their usage, when the model pools."""
        handler = getattr(self._handlers, "serving_embedding", None)
        if handler is None:
            raise Unsupported("This model does not produce embeddings; serve an embedding model for /v1/embeddings.")
        current_call.set(call)
        request = vllm.EmbeddingCompletionRequest(**kwargs)
        reply = await _or_vllm_error(handler(request))
        return _decode(reply.body)

    async def tokenize(self, kwargs: JsonObject, call: Call) -> JsonObject:
        """Token ids of a prompt or of messages under the chat template."""
        request_type = vllm.TokenizeChatRequest if "messages" in kwargs else vllm.TokenizeCompletionRequest
        reply = await self._run(request_type, self._handlers.serving_tokenization.create_tokenize, kwargs, call)
        return _only_object(reply)

    async def detokenize(self, kwargs: JsonObject, call: Call) -> JsonObject:
        """Text of token ids."""
        run = self._handlers.serving_tokenization.create_detokenize
        return _only_object(await self._run(vllm.DetokenizeRequest, run, kwargs, call))

    def _generating(self, handler: Any, feature: str) -> Any:
        if handler is None:
            raise Unsupported(f"This model does not generate text, so it has no {feature}.")
        return handler

    async def _run(
        self, request_type: Any, create: Any, kwargs: JsonObject, call: Call
    ) -> JsonObject | AsyncGenerator[JsonObject, None]:
        current_call.set(call)

        async def build_and_create() -> Any:
            return await create(request_type(**kwargs), None)

        reply = await _or_vllm_error(build_and_create())
        if isinstance(reply, AsyncIterator):
            return self._decode_stream(reply, call)
        if isinstance(reply, vllm.ErrorResponse):
            if _being_cancelled():
                # vLLM takes a cancellation for a disconnected client, and answers it.
                raise asyncio.CancelledError
            raise call.failure or VllmError(reply.model_dump())
        body: JsonObject = reply.model_dump(mode="json")
        return body

    async def _decode_stream(self, frames: Any, call: Call) -> AsyncGenerator[JsonObject, None]:
        """JSON of each SSE frame. vLLM reports a failure inside its stream; here it is raised."""
        current_call.set(call)
        try:
            async for frame in frames:
                for line in frame.split("\n\n"):
                    data = line.removeprefix(_DATA_PREFIX)
                    if not data or data == _DONE:
                        continue
                    chunk = _decode(data)
                    if "error" in chunk:
                        raise call.failure or VllmError(chunk)
                    yield chunk
        finally:
            await frames.aclose()
            await self.seam.abandon(call)


async def _or_vllm_error(reply: Awaitable[Any]) -> Any:
    try:
        return await reply
    except ServeError:
        raise
    except Exception as error:
        # vLLM's objects look at the engine before they come to the seam, which then knows of no failure.
        failure = current_call.get().failure or known_failure(error)
        if failure is not None:
            raise failure from error
        raw = vllm.create_error_response(error).model_dump()
        _log_unexpected(error, raw["error"]["code"])
        raise VllmError(raw) from error


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _log_unexpected(error: Exception, http_status: int) -> None:
    """What vLLM did not raise for the caller's sake. Where and what kind, but no message: it may quote the request."""
    if isinstance(error, vllm.VLLMClientError | pydantic.ValidationError):
        return
    level = logging.ERROR if http_status >= 500 else logging.WARNING
    where = "".join(traceback.format_tb(error.__traceback__))
    request_id = current_call.get().meta.request_id
    log.log(level, "request %s: %s inside vLLM\n%s", request_id, type(error).__name__, where)


_decoder = msgspec.json.Decoder()


def _decode(data: str | bytes) -> JsonObject:
    decoded: JsonObject = _decoder.decode(data)
    return decoded


def _only_object(reply: JsonObject | AsyncGenerator[JsonObject, None]) -> JsonObject:
    if not isinstance(reply, dict):
        raise TypeError("vLLM streamed where it answers once")
    return reply
