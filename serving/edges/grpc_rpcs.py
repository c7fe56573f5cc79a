"""Every RPC: its messages and what it calls. Bodies go through the same validator as HTTP's."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf.message import Message

from burrstone.batching.errors import NotFound
from burrstone.batching.request import RequestMeta
from burrstone.openai.v1 import (
    chat_pb2,
    completions_pb2,
    embeddings_pb2,
    models_pb2,
    raw_pb2,
    responses_pb2,
    tokenize_pb2,
)
from burrstone.serving.api.types import Api, JsonObject, Stream
from burrstone.serving.config import LimitsConfig
from burrstone.serving.edges.http_body import parse_object
from burrstone.serving.edges.http_routes import RouteTable
from burrstone.serving.edges.proto_convert import from_json, stream_chunk, to_json

PACKAGE = "burrstone.openai.v1"
Unary = Callable[[Api, Any, RequestMeta], Awaitable[Message]]
Streaming = Callable[[Api, Any, RequestMeta], AsyncGenerator[Message, None]]


@dataclass(frozen=True, slots=True)
class Rpc:
    """`unary` or `streaming` is set. `name` is also the operation's name in metrics."""

    service: str
    name: str
    request: type[Message]
    unary: Unary | None = None
    streaming: Streaming | None = None


def rpcs(limits: LimitsConfig) -> list[Rpc]:
    """The table. `limits` bounds the JSON that RawService parses."""
    return [
        _unary("ChatCompletionService", "CreateChatCompletion", chat_pb2, lambda api: api.chat),
        _stream("ChatCompletionService", "StreamChatCompletion", chat_pb2, lambda api: api.chat, stream_chunk),
        _unary("CompletionService", "CreateCompletion", completions_pb2, lambda api: api.completions),
        _stream("CompletionService", "StreamCompletion", completions_pb2, lambda api: api.completions),
        _unary("ResponseService", "CreateResponse", responses_pb2, lambda api: api.responses, "response"),
        _stream("ResponseService", "StreamResponse", responses_pb2, lambda api: api.responses),
        Rpc("ResponseService", "GetResponse", responses_pb2.GetResponseRequest, unary=_get_response),
        Rpc("ResponseService", "DeleteResponse", responses_pb2.DeleteResponseRequest, unary=_delete_response),
        Rpc("ResponseService", "CancelResponse", responses_pb2.CancelResponseRequest, unary=_cancel_response),
        Rpc("ResponseService", "ListInputItems", responses_pb2.ListInputItemsRequest, unary=_list_input_items),
        _unary("EmbeddingService", "CreateEmbedding", embeddings_pb2, lambda api: api.embeddings),
        Rpc("ModelService", "ListModels", models_pb2.ListModelsRequest, unary=_list_models),
        Rpc("ModelService", "GetModel", models_pb2.GetModelRequest, unary=_get_model),
        _unary("TokenizeService", "Tokenize", tokenize_pb2, lambda api: api.tokenize),
        _unary("TokenizeService", "Detokenize", tokenize_pb2, lambda api: api.detokenize),
        Rpc("RawService", "Invoke", raw_pb2.InvokeRequest, streaming=_invoke(limits)),
    ]


def body_of(request: Message, *, stream: bool) -> JsonObject:
    """The HTTP body of a request: `params` where the message wraps them, the message itself elsewhere."""
    if "params" not in request.DESCRIPTOR.fields_by_name:
        return to_json(request)
    body = to_json(getattr(request, "params"))  # noqa: B009  the field exists only on some messages
    if stream:
        body["stream"] = True
        if "stream_options" in request.DESCRIPTOR.fields_by_name and request.HasField("stream_options"):
            body["stream_options"] = to_json(getattr(request, "stream_options"))  # noqa: B009
    return body


Method = Callable[[Api], Callable[[JsonObject, RequestMeta], Awaitable[JsonObject | Stream]]]


def _unary(service: str, name: str, module: Any, method: Method, wrap: str | None = None) -> Rpc:
    reply_type: type[Message] = getattr(module, f"{name}Response")

    async def run(api: Api, request: Message, meta: RequestMeta) -> Message:
        reply = await method(api)(body_of(request, stream=False), meta)
        if not isinstance(reply, dict):
            raise TypeError(f"{name} streamed where it answers once")
        return from_json(reply_type, reply if wrap is None else {wrap: reply})

    return Rpc(service, name, getattr(module, f"{name}Request"), unary=run)


def _stream(
    service: str, name: str, module: Any, method: Method, encode: Callable[[JsonObject], Message] | None = None
) -> Rpc:
    reply_type: type[Message] = getattr(module, f"{name}Response")
    to_message = encode or (lambda body: from_json(reply_type, body))

    async def run(api: Api, request: Message, meta: RequestMeta) -> AsyncGenerator[Message, None]:
        events = await method(api)(body_of(request, stream=True), meta)
        if isinstance(events, dict):
            raise TypeError(f"{name} answered once where it streams")
        try:
            async for event in events:
                yield to_message(event.data)
        finally:
            await events.aclose()

    return Rpc(service, name, getattr(module, f"{name}Request"), streaming=run)


async def _get_response(api: Api, request: responses_pb2.GetResponseRequest, meta: RequestMeta) -> Message:
    reply = await api.retrieve_response(request.response_id, meta, stream=False, starting_after=None)
    return from_json(responses_pb2.GetResponseResponse, {"response": reply})


async def _delete_response(api: Api, request: responses_pb2.DeleteResponseRequest, meta: RequestMeta) -> Message:
    return from_json(responses_pb2.DeleteResponseResponse, await api.delete_response(request.response_id, meta))


async def _cancel_response(api: Api, request: responses_pb2.CancelResponseRequest, meta: RequestMeta) -> Message:
    reply = await api.cancel_response(request.response_id, meta)
    return from_json(responses_pb2.CancelResponseResponse, {"response": reply})


async def _list_input_items(api: Api, request: responses_pb2.ListInputItemsRequest, meta: RequestMeta) -> Message:
    return from_json(responses_pb2.ListInputItemsResponse, await api.response_input_items(request.response_id, meta))


async def _list_models(api: Api, request: models_pb2.ListModelsRequest, meta: RequestMeta) -> Message:
    return from_json(models_pb2.ListModelsResponse, await api.models(meta))


async def _get_model(api: Api, request: models_pb2.GetModelRequest, meta: RequestMeta) -> Message:
    return from_json(models_pb2.GetModelResponse, {"model": await api.model(request.model, meta)})


def _invoke(limits: LimitsConfig) -> Streaming:
    routes = RouteTable()

    async def run(
        api: Api, request: raw_pb2.InvokeRequest, meta: RequestMeta
    ) -> AsyncGenerator[raw_pb2.InvokeResponse, None]:
        match = routes.match(request.path).get("POST")
        if match is None:
            raise NotFound(f"No operation takes POST at {request.path[:128]!r}.", param="path", code="unknown_url")
        body = parse_object(request.body or b"{}", limits)
        reply = await match.operation.run(api, body, meta, match.path_value, b"")
        if isinstance(reply, dict):
            yield raw_pb2.InvokeResponse(body=msgspec.json.encode(reply))
            return
        try:
            async for event in reply:
                yield raw_pb2.InvokeResponse(event=event.name or "", body=msgspec.json.encode(event.data))
        finally:
            await reply.aclose()

    return run
