"""A typed gRPC client, sync and async. Fields are written as in the HTTP API; answers are the proto messages.

    with Client("127.0.0.1:9000") as client:
        answer = client.chat(model="default", messages=[{"role": "user", "content": "Hi"}])
        print(answer.choices[0].message.content)

Every method takes `timeout_s` (the call's deadline) and `request_id`, and raises ApiError. Closing a stream cancels it:
its generation ends in the engine. Needs grpcio and protobuf, nothing else of the server's stack.
"""

import contextlib
import json
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from burrstone.openai.v1 import (
    chat_pb2,
    completions_pb2,
    embeddings_pb2,
    models_pb2,
    raw_pb2,
    responses_pb2,
    tokenize_pb2,
)
from burrstone.serving.edges.proto_convert import from_json

_PACKAGE = "burrstone.openai.v1"
_DETAILS_KEY = "grpc-status-details-bin"
_MAX_RECEIVE_BYTES = 64 * 2**20  # what the server sends at most
_OPTIONS = [("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES)]
ReplyT = TypeVar("ReplyT", bound=Message)


class ApiError(Exception):
    """The server refused or failed. The same words as the HTTP API's error envelope, and the gRPC status."""

    def __init__(self, error: grpc.RpcError) -> None:
        status: Any = error
        self.status: grpc.StatusCode = status.code()
        self.message: str = status.details() or ""
        self.code: str | None = None
        self.type: str | None = None
        self.param: str | None = None
        self.http_status: int | None = None
        self.request_id: str | None = None
        self.retry_after_s: float | None = None
        super().__init__(f"{self.status.name}: {self.message}")
        for key, value in status.trailing_metadata() or ():
            if key == _DETAILS_KEY:
                self._read(status_pb2.Status.FromString(value))

    def _read(self, details: status_pb2.Status) -> None:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in details.details:
            if detail.Unpack(info):
                self.code = info.reason
                self.type, self.param = info.metadata["type"], info.metadata.get("param")
                self.http_status, self.request_id = int(info.metadata["http_status"]), info.metadata["request_id"]
            elif detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000


@dataclass(frozen=True, slots=True)
class _Operation(Generic[ReplyT]):
    """One RPC. `wrapped` requests hold the API's fields in `params`."""

    service: str
    request: type[Message]
    reply: type[ReplyT]
    wrapped: bool = False

    @property
    def path(self) -> str:
        return f"/{_PACKAGE}.{self.service}/{self.request.DESCRIPTOR.name.removesuffix('Request')}"

    def message(self, fields: dict[str, Any]) -> Message:
        """Raises ValueError or TypeError for fields that the request cannot hold."""
        given = {name: value for name, value in fields.items() if value is not None}
        if not self.wrapped:
            return from_json(self.request, given)
        outside = {name: given.pop(name) for name in list(given) if name == "stream_options"}
        return from_json(self.request, {"params": given} | outside)


_CHAT, _TEXT, _RESPONSE = "ChatCompletionService", "CompletionService", "ResponseService"
CHAT = _Operation(_CHAT, chat_pb2.CreateChatCompletionRequest, chat_pb2.CreateChatCompletionResponse, wrapped=True)
STREAM_CHAT = _Operation(
    _CHAT, chat_pb2.StreamChatCompletionRequest, chat_pb2.StreamChatCompletionResponse, wrapped=True
)
COMPLETE = _Operation(
    _TEXT, completions_pb2.CreateCompletionRequest, completions_pb2.CreateCompletionResponse, wrapped=True
)
STREAM_COMPLETE = _Operation(
    _TEXT, completions_pb2.StreamCompletionRequest, completions_pb2.StreamCompletionResponse, wrapped=True
)
RESPOND = _Operation(_RESPONSE, responses_pb2.CreateResponseRequest, responses_pb2.CreateResponseResponse, wrapped=True)
STREAM_RESPOND = _Operation(
    _RESPONSE, responses_pb2.StreamResponseRequest, responses_pb2.StreamResponseResponse, wrapped=True
)
GET_RESPONSE = _Operation(_RESPONSE, responses_pb2.GetResponseRequest, responses_pb2.GetResponseResponse)
CANCEL_RESPONSE = _Operation(_RESPONSE, responses_pb2.CancelResponseRequest, responses_pb2.CancelResponseResponse)
DELETE_RESPONSE = _Operation(_RESPONSE, responses_pb2.DeleteResponseRequest, responses_pb2.DeleteResponseResponse)
EMBED = _Operation("EmbeddingService", embeddings_pb2.CreateEmbeddingRequest, embeddings_pb2.CreateEmbeddingResponse)
INPUT_ITEMS = _Operation(_RESPONSE, responses_pb2.ListInputItemsRequest, responses_pb2.ListInputItemsResponse)
LIST_MODELS = _Operation("ModelService", models_pb2.ListModelsRequest, models_pb2.ListModelsResponse)
GET_MODEL = _Operation("ModelService", models_pb2.GetModelRequest, models_pb2.GetModelResponse)
TOKENIZE = _Operation("TokenizeService", tokenize_pb2.TokenizeRequest, tokenize_pb2.TokenizeResponse)
DETOKENIZE = _Operation("TokenizeService", tokenize_pb2.DetokenizeRequest, tokenize_pb2.DetokenizeResponse)
INVOKE = _Operation("RawService", raw_pb2.InvokeRequest, raw_pb2.InvokeResponse)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Where and as whom a client calls. `root_certificates`: PEM of the CA that signed the server; turns TLS on."""

    api_key: str | None
    root_certificates: bytes | None
    client_key: bytes | None
    client_certificate: bytes | None

    def credentials(self) -> grpc.ChannelCredentials | None:
        if self.root_certificates is None:
            return None
        return grpc.ssl_channel_credentials(self.root_certificates, self.client_key, self.client_certificate)

    def open(self, channel: Any, operation: _Operation[Any], fields: dict[str, Any], *, stream: bool) -> Any:
        """Start the call; `timeout_s` and `request_id` are taken out of the fields."""
        timeout_s, request_id = fields.pop("timeout_s", None), fields.pop("request_id", None)
        metadata = [] if self.api_key is None else [("authorization", f"Bearer {self.api_key}")]
        if request_id is not None:
            metadata.append(("x-request-id", request_id))
        shape = channel.unary_stream if stream else channel.unary_unary
        call = shape(
            operation.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=operation.reply.FromString,
        )
        return call(operation.message(fields), timeout=timeout_s, metadata=metadata)


@contextlib.contextmanager
def _api_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise ApiError(error) from error


class Client:
    """Blocking calls over one channel; safe to share between threads."""

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        root_certificates: bytes | None = None,
        client_key: bytes | None = None,
        client_certificate: bytes | None = None,
    ) -> None:
        self._settings = _Settings(api_key, root_certificates, client_key, client_certificate)
        credentials = self._settings.credentials()
        self._channel: Any = (
            grpc.insecure_channel(target, _OPTIONS)
            if credentials is None
            else grpc.secure_channel(target, credentials, _OPTIONS)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is running and close the channel."""
        self._channel.close()

    def chat(self, **fields: Any) -> chat_pb2.CreateChatCompletionResponse:
        """POST /v1/chat/completions."""
        return self._once(CHAT, fields)

    def stream_chat(self, **fields: Any) -> Generator[chat_pb2.StreamChatCompletionResponse, None, None]:
        """POST /v1/chat/completions, chunk by chunk."""
        return self._stream(STREAM_CHAT, fields)

    def complete(self, **fields: Any) -> completions_pb2.CreateCompletionResponse:
        """POST /v1/completions."""
        return self._once(COMPLETE, fields)

    def stream_complete(self, **fields: Any) -> Generator[completions_pb2.StreamCompletionResponse, None, None]:
        """POST /v1/completions, chunk by chunk."""
        return self._stream(STREAM_COMPLETE, fields)

    def respond(self, **fields: Any) -> responses_pb2.CreateResponseResponse:
        """POST /v1/responses."""
        return self._once(RESPOND, fields)

    def stream_respond(self, **fields: Any) -> Generator[responses_pb2.StreamResponseResponse, None, None]:
        """POST /v1/responses, event by event."""
        return self._stream(STREAM_RESPOND, fields)

    def get_response(self, response_id: str, **call: Any) -> responses_pb2.GetResponseResponse:
        """GET /v1/responses/{id}."""
        return self._once(GET_RESPONSE, {"response_id": response_id} | call)

    def cancel_response(self, response_id: str, **call: Any) -> responses_pb2.CancelResponseResponse:
        """POST /v1/responses/{id}/cancel."""
        return self._once(CANCEL_RESPONSE, {"response_id": response_id} | call)

    def delete_response(self, response_id: str, **call: Any) -> responses_pb2.DeleteResponseResponse:
        """DELETE /v1/responses/{id}."""
        return self._once(DELETE_RESPONSE, {"response_id": response_id} | call)

    def list_input_items(self, response_id: str, **call: Any) -> responses_pb2.ListInputItemsResponse:
        """GET /v1/responses/{id}/input_items."""
        return self._once(INPUT_ITEMS, {"response_id": response_id} | call)

    def embed(self, **fields: Any) -> embeddings_pb2.CreateEmbeddingResponse:
        """POST /v1/embeddings."""
        return self._once(EMBED, fields)

    def list_models(self, **call: Any) -> models_pb2.ListModelsResponse:
        """GET /v1/models."""
        return self._once(LIST_MODELS, call)

    def get_model(self, model: str, **call: Any) -> models_pb2.GetModelResponse:
        """GET /v1/models/{model}."""
        return self._once(GET_MODEL, {"model": model} | call)

    def tokenize(self, **fields: Any) -> tokenize_pb2.TokenizeResponse:
        """POST /tokenize."""
        return self._once(TOKENIZE, fields)

    def detokenize(self, **fields: Any) -> tokenize_pb2.DetokenizeResponse:
        """POST /detokenize."""
        return self._once(DETOKENIZE, fields)

    def invoke(self, path: str, body: dict[str, Any], **call: Any) -> Generator[dict[str, Any], None, None]:
        """Any HTTP operation by its path and JSON body: its answer, or each event of its stream."""
        fields = {"path": path, "body": json.dumps(body).encode()} | call
        for frame in self._stream(INVOKE, fields):
            yield json.loads(frame.body)

    def _once(self, operation: _Operation[ReplyT], fields: dict[str, Any]) -> ReplyT:
        with _api_errors():
            reply: ReplyT = self._settings.open(self._channel, operation, fields, stream=False)
        return reply

    def _stream(self, operation: _Operation[ReplyT], fields: dict[str, Any]) -> Generator[ReplyT, None, None]:
        call = self._settings.open(self._channel, operation, fields, stream=True)
        try:
            with _api_errors():
                yield from call
        finally:
            call.cancel()


class AsyncClient:
    """The same for asyncio."""

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        root_certificates: bytes | None = None,
        client_key: bytes | None = None,
        client_certificate: bytes | None = None,
    ) -> None:
        self._settings = _Settings(api_key, root_certificates, client_key, client_certificate)
        credentials = self._settings.credentials()
        self._channel: Any = (
            grpc.aio.insecure_channel(target, _OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, _OPTIONS)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End what is running and close the channel."""
        await self._channel.close()

    async def chat(self, **fields: Any) -> chat_pb2.CreateChatCompletionResponse:
        """POST /v1/chat/completions."""
        return await self._once(CHAT, fields)

    def stream_chat(self, **fields: Any) -> AsyncGenerator[chat_pb2.StreamChatCompletionResponse, None]:
        """POST /v1/chat/completions, chunk by chunk."""
        return self._stream(STREAM_CHAT, fields)

    async def complete(self, **fields: Any) -> completions_pb2.CreateCompletionResponse:
        """POST /v1/completions."""
        return await self._once(COMPLETE, fields)

    def stream_complete(self, **fields: Any) -> AsyncGenerator[completions_pb2.StreamCompletionResponse, None]:
        """POST /v1/completions, chunk by chunk."""
        return self._stream(STREAM_COMPLETE, fields)

    async def respond(self, **fields: Any) -> responses_pb2.CreateResponseResponse:
        """POST /v1/responses."""
        return await self._once(RESPOND, fields)

    def stream_respond(self, **fields: Any) -> AsyncGenerator[responses_pb2.StreamResponseResponse, None]:
        """POST /v1/responses, event by event."""
        return self._stream(STREAM_RESPOND, fields)

    async def get_response(self, response_id: str, **call: Any) -> responses_pb2.GetResponseResponse:
        """GET /v1/responses/{id}."""
        return await self._once(GET_RESPONSE, {"response_id": response_id} | call)

    async def cancel_response(self, response_id: str, **call: Any) -> responses_pb2.CancelResponseResponse:
        """POST /v1/responses/{id}/cancel."""
        return await self._once(CANCEL_RESPONSE, {"response_id": response_id} | call)

    async def delete_response(self, response_id: str, **call: Any) -> responses_pb2.DeleteResponseResponse:
        """DELETE /v1/responses/{id}."""
        return await self._once(DELETE_RESPONSE, {"response_id": response_id} | call)

    async def list_input_items(self, response_id: str, **call: Any) -> responses_pb2.ListInputItemsResponse:
        """GET /v1/responses/{id}/input_items."""
        return await self._once(INPUT_ITEMS, {"response_id": response_id} | call)

    async def embed(self, **fields: Any) -> embeddings_pb2.CreateEmbeddingResponse:
        """POST /v1/embeddings."""
        return await self._once(EMBED, fields)

    async def list_models(self, **call: Any) -> models_pb2.ListModelsResponse:
        """GET /v1/models."""
        return await self._once(LIST_MODELS, call)

    async def get_model(self, model: str, **call: Any) -> models_pb2.GetModelResponse:
        """GET /v1/models/{model}."""
        return await self._once(GET_MODEL, {"model": model} | call)

    async def tokenize(self, **fields: Any) -> tokenize_pb2.TokenizeResponse:
        """POST /tokenize."""
        return await self._once(TOKENIZE, fields)

    async def detokenize(self, **fields: Any) -> tokenize_pb2.DetokenizeResponse:
        """POST /detokenize."""
        return await self._once(DETOKENIZE, fields)

    async def invoke(self, path: str, body: dict[str, Any], **call: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Any HTTP operation by its path and JSON body: its answer, or each event of its stream."""
        fields = {"path": path, "body": json.dumps(body).encode()} | call
        async for frame in self._stream(INVOKE, fields):
            yield json.loads(frame.body)

    async def _once(self, operation: _Operation[ReplyT], fields: dict[str, Any]) -> ReplyT:
        with _api_errors():
            reply: ReplyT = await self._settings.open(self._channel, operation, fields, stream=False)
        return reply

    async def _stream(self, operation: _Operation[ReplyT], fields: dict[str, Any]) -> AsyncGenerator[ReplyT, None]:
        call = self._settings.open(self._channel, operation, fields, stream=True)
        try:
            with _api_errors():
                async for frame in call:
                    yield frame
        finally:
            call.cancel()
