"""One semantics for both wires: parse, run through vLLM, put right what vLLM leaves wrong."""

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any

from burrstone.batching.errors import NotFound, ServeError
from burrstone.batching.request import RequestMeta
from burrstone.serving.api import chat, completions, embeddings, tokens
from burrstone.serving.api.base import from_vllm_error
from burrstone.serving.api.messages import MessagesApi
from burrstone.serving.api.renaming import renamed
from burrstone.serving.api.responses import ResponsesApi, Track
from burrstone.serving.api.types import JsonObject, Order, Stream
from burrstone.serving.config import ServeConfig
from burrstone.serving.engine.backend import Backend, VllmError
from burrstone.serving.engine.seam import Call
from burrstone.serving.metrics import ApiMetrics


class OpenAIService:
    """The Api both edges call. /v1/responses and /v1/messages are other dialects of `chat`."""

    def __init__(
        self, backend: Backend, config: ServeConfig, metrics: ApiMetrics, track: Track = contextlib.nullcontext
    ) -> None:
        self._backend = backend
        self._limits = config.limits
        self._unknown_fields = config.unknown_fields
        self._metrics = metrics
        self._started_unix_s = int(time.time())
        self._responses = ResponsesApi(self.chat, config.limits, config.unknown_fields, track=track)
        self._messages = MessagesApi(self.chat, self._count_prompt_tokens, config.limits, config.unknown_fields)

    async def chat(self, body: JsonObject, meta: RequestMeta, *, keep_stop_reason: bool = False) -> JsonObject | Stream:
        """`keep_stop_reason` leaves vLLM's matched stop string in the choices, which /v1/messages reports."""
        request = chat.parse(body, self._limits, self._unknown_fields)
        self._check_model(request.model)
        call = self._call(meta, has_limit=request.max_tokens_asked is not None)
        try:
            raw = await self._open(self._backend.chat(chat.to_vllm(request), call), call)
        except ServeError as error:
            if request.max_completion_tokens is None:  # both become vLLM's max_completion_tokens
                raise renamed(error, [("max_completion_tokens", "max_tokens")]) from error
            raise

        def on_finish(reasons: list[str]) -> None:
            self._backend.seam.rest(meta, rests=chat.calls_no_tool(request, reasons))

        if isinstance(raw, dict):
            fixed = chat.fix_response(raw, request, keep_stop_reason=keep_stop_reason)
            on_finish([choice["finish_reason"] for choice in fixed["choices"]])
            return fixed
        chunks = _translated_stream(raw)
        return self._accounted(
            chat.fix_stream(chunks, request, keep_stop_reason=keep_stop_reason, on_finish=on_finish), call
        )

    async def completions(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream:
        request = completions.parse(body, self._limits, self._unknown_fields)
        self._check_model(request.model)
        call = self._call(meta, has_limit=request.max_tokens is not None)
        raw = await self._open(self._backend.completions(completions.to_vllm(request), call), call, "prompt")
        if isinstance(raw, dict):
            return completions.fix_response(raw, request, call.cached_tokens)
        chunks = _translated_stream(raw, "prompt")
        return self._accounted(completions.fix_stream(chunks, request, lambda: call.cached_tokens), call)

    async def responses(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream:
        return await self._responses.create(body, meta)

    async def retrieve_response(
        self, response_id: str, meta: RequestMeta, *, stream: bool, starting_after: int | None
    ) -> JsonObject | Stream:
        return await self._responses.retrieve(response_id, meta, stream=stream, starting_after=starting_after)

    async def cancel_response(self, response_id: str, meta: RequestMeta) -> JsonObject:
        return await self._responses.cancel(response_id, meta)

    async def delete_response(self, response_id: str, meta: RequestMeta) -> JsonObject:
        return await self._responses.delete(response_id, meta)

    async def response_input_items(
        self,
        response_id: str,
        meta: RequestMeta,
        *,
        order: Order = "desc",
        after: str | None = None,
        limit: int | None = None,
    ) -> JsonObject:
        return await self._responses.input_items(response_id, meta, order=order, after=after, limit=limit)

    async def messages(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream:
        return await self._messages.create(body, meta)

    async def count_tokens(self, body: JsonObject, meta: RequestMeta) -> JsonObject:
        return await self._messages.count_tokens(body, meta)

    async def embeddings(self, body: JsonObject, meta: RequestMeta) -> JsonObject:
        request = embeddings.parse(body, self._limits, self._unknown_fields)
        self._check_model(request.model)
        call = self._call(meta, has_limit=True)
        raw = await self._open(self._backend.embeddings(embeddings.to_vllm(request), call), call, "input")
        return embeddings.fix_response(raw, request)

    async def models(self, meta: RequestMeta) -> JsonObject:
        names = [(name, None) for name in self._backend.model_names]
        adapters = [(name, self._backend.model_names[0]) for name in self._backend.adapters]
        return {"object": "list", "data": [self._model_card(name, parent) for name, parent in names + adapters]}

    async def model(self, model_id: str, meta: RequestMeta) -> JsonObject:
        self._check_model(model_id)
        parent = self._backend.model_names[0] if model_id in self._backend.adapters else None
        return self._model_card(model_id, parent)

    async def tokenize(self, body: JsonObject, meta: RequestMeta) -> JsonObject:
        request = tokens.parse_tokenize(body, self._limits, self._unknown_fields)
        if request.model is not None:
            self._check_model(request.model)
        kwargs = tokens.tokenize_to_vllm(request)
        reply: JsonObject = await _translated(self._backend.tokenize(kwargs, self._call(meta, has_limit=True)))
        return reply

    async def detokenize(self, body: JsonObject, meta: RequestMeta) -> JsonObject:
        request = tokens.parse_detokenize(body, self._limits, self._unknown_fields)
        if request.model is not None:
            self._check_model(request.model)
        kwargs = tokens.detokenize_to_vllm(request)
        reply: JsonObject = await _translated(self._backend.detokenize(kwargs, self._call(meta, has_limit=True)))
        return reply

    async def _count_prompt_tokens(self, chat_body: JsonObject, meta: RequestMeta) -> int:
        """Prompt tokens of a chat body under the model's template."""
        request = chat.parse(chat_body, self._limits, self._unknown_fields)
        self._check_model(request.model)
        kwargs = chat.to_vllm(request)
        wanted = {key: kwargs[key] for key in ("model", "messages", "tools") if kwargs.get(key) is not None}
        reply = await _translated(self._backend.tokenize(wanted, self._call(meta, has_limit=True)))
        return int(reply["count"])

    def _call(self, meta: RequestMeta, *, has_limit: bool) -> Call:
        return Call(meta, default_max_tokens=None if has_limit else self._limits.default_max_tokens)

    def _check_model(self, name: str) -> None:
        if name not in self._backend.model_names and name not in self._backend.adapters:
            raise NotFound(
                f"The model `{name[:128]}` does not exist or you do not have access to it.",
                param="model",
                code="model_not_found",
            )

    def _model_card(self, name: str, parent: str | None) -> JsonObject:
        return {
            "id": name,
            "object": "model",
            "created": self._started_unix_s,
            "owned_by": "burrstone",
            "root": parent or self._backend.model_names[0],
            "parent": parent,
            "max_model_len": self._backend.max_model_len,
        }

    async def _open(self, reply: Awaitable[Any], call: Call, prompt_param: str = "messages") -> Any:
        """The backend's answer. Metered here unless it is a stream, also when it fails or nobody waits for it."""
        raw = None
        try:
            raw = await _translated(reply, prompt_param)
            return raw
        finally:
            if raw is None or isinstance(raw, dict):
                self._account(call)

    def _account(self, call: Call) -> None:
        for kind, count in (
            ("prompt", call.prompt_tokens),
            ("cached", call.cached_tokens),
            ("output", call.output_tokens),
        ):
            self._metrics.tokens.labels(call.meta.tenant, kind).inc(count)

    async def _accounted(self, stream: Stream, call: Call) -> Stream:
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()
            self._account(call)


async def _translated(reply: Awaitable[Any], prompt_param: str = "messages") -> Any:
    try:
        return await reply
    except VllmError as error:
        raise from_vllm_error(error.raw, prompt_param=prompt_param) from error


async def _translated_stream(
    chunks: AsyncGenerator[JsonObject, None], prompt_param: str = "messages"
) -> AsyncGenerator[JsonObject, None]:
    try:
        async for chunk in chunks:
            yield chunk
    except VllmError as error:
        raise from_vllm_error(error.raw, prompt_param=prompt_param) from error
    finally:
        await chunks.aclose()
