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
from burrstone.serving.api.types import Api, Event, JsonObject, Stream
from burrstone.serving.config import LimitsConfig
from burrstone.serving.edges.http_body import parse_object
from burrstone.serving.edges.http_routes import RouteTable
from burrstone.serving.edges.proto_convert import from_json, request_json
from burrstone.serving.edges.proto_convert_hot import chat_chunk, completion_chunk, response_event

Unary = Callable[[Api, Any, RequestMeta], Awaitable[Message]]
Open = Callable[[Api, Any, RequestMeta], Awaitable[Stream]]
Encode = Callable[[JsonObject], Message]


@dataclass(frozen=True, slots=True)
class Streaming:
    """`open` begins the answer; `encode` makes the message of one of its events."""

    open: Open
    encode: Callable[[Event], Message]


@dataclass(frozen=True, slots=True)
class Rpc:
    """`call` answers once or streams. `name` is also the operation's name in metrics."""

    service: str
    name: str
    request: type[Message]
    call: Unary | Streaming


def rpcs(limits: LimitsConfig) -> list[Rpc]:
    """The table. `limits` bounds the JSON inside messages."""
    depth = limits.max_json_depth
    chat, text, responses = "ChatCompletionService", "CompletionService", "ResponseService"
    return [
        _unary(chat, "CreateChatCompletion", chat_pb2, lambda api: api.chat, depth),
        _stream(chat, "StreamChatCompletion", chat_pb2, lambda api: api.chat, depth, chat_chunk),
        _unary(text, "CreateCompletion", completions_pb2, lambda api: api.completions, depth),
        _stream(text, "StreamCompletion", completions_pb2, lambda api: api.completions, depth, completion_chunk),
        _unary(responses, "CreateResponse", responses_pb2, lambda api: api.responses, depth, wrap="response"),
        _stream(responses, "StreamResponse", responses_pb2, lambda api: api.responses, depth, response_event),
        Rpc(responses, "GetResponse", responses_pb2.GetResponseRequest, _get_response),
        Rpc(responses, "DeleteResponse", responses_pb2.DeleteResponseRequest, _delete_response),
        Rpc(responses, "CancelResponse", responses_pb2.CancelResponseRequest, _cancel_response),
        Rpc(responses, "ListInputItems", responses_pb2.ListInputItemsRequest, _list_input_items),
        _unary("EmbeddingService", "CreateEmbedding", embeddings_pb2, lambda api: api.embeddings, depth),
        Rpc("ModelService", "ListModels", models_pb2.ListModelsRequest, _list_models),
        Rpc("ModelService", "GetModel", models_pb2.GetModelRequest, _get_model),
        _unary("TokenizeService", "Tokenize", tokenize_pb2, lambda api: api.tokenize, depth),
        _unary("TokenizeService", "Detokenize", tokenize_pb2, lambda api: api.detokenize, depth),
        Rpc("RawService", "Invoke", raw_pb2.InvokeRequest, Streaming(_invoke(limits), _raw_event)),
    ]


def body_of(request: Any, max_json_depth: int, *, stream: bool) -> JsonObject:
    """The HTTP body of a request: `params` where the message wraps them, the message itself elsewhere."""
    if "params" not in request.DESCRIPTOR.fields_by_name:
        return request_json(request, max_json_depth)
    body = request_json(request.params, max_json_depth)
    if stream:
        body["stream"] = True
        if request.HasField("stream_options"):
            body["stream_options"] = request_json(request.stream_options, max_json_depth)
    return body


Method = Callable[[Api], Callable[[JsonObject, RequestMeta], Awaitable[JsonObject | Stream]]]


def _unary(service: str, name: str, module: Any, method: Method, depth: int, wrap: str | None = None) -> Rpc:
    reply_type: type[Message] = getattr(module, f"{name}Response")

    async def run(api: Api, request: Message, meta: RequestMeta) -> Message:
        reply = await method(api)(body_of(request, depth, stream=False), meta)
        if not isinstance(reply, dict):
            raise TypeError(f"{name} streamed where it answers once")
        return from_json(reply_type, reply if wrap is None else {wrap: reply})

    return Rpc(service, name, getattr(module, f"{name}Request"), run)


def _stream(service: str, name: str, module: Any, method: Method, depth: int, encode: Encode) -> Rpc:
    async def begin(api: Api, request: Message, meta: RequestMeta) -> Stream:
        events = await method(api)(body_of(request, depth, stream=True), meta)
        if isinstance(events, dict):
            raise TypeError(f"{name} answered once where it streams")
        return events

    return Rpc(service, name, getattr(module, f"{name}Request"), Streaming(begin, lambda event: encode(event.data)))


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


def _invoke(limits: LimitsConfig) -> Open:
    routes = RouteTable()

    async def begin(api: Api, request: raw_pb2.InvokeRequest, meta: RequestMeta) -> Stream:
        match = routes.match(request.path).get("POST")
        if match is None:
            raise NotFound(f"No operation takes POST at {request.path[:128]!r}.", param="path", code="unknown_url")
        body = parse_object(request.body or b"{}", limits)
        reply = await match.operation.run(api, body, meta, match.path_value, b"")
        return _once(reply) if isinstance(reply, dict) else reply

    return begin


async def _once(reply: JsonObject) -> AsyncGenerator[Event, None]:
    yield Event(reply)


def _raw_event(event: Event) -> raw_pb2.InvokeResponse:
    return raw_pb2.InvokeResponse(event=event.name or "", body=msgspec.json.encode(event.data))
