"""The words both wires share: a JSON body comes in, a JSON body or a stream of events goes out."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from burrstone.batching.request import RequestMeta

JsonObject = dict[str, Any]
Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class Event:
    """One streamed event, JSON decoded. `name` is the SSE event name that /v1/responses and /v1/messages use."""

    data: JsonObject
    name: str | None = None


Stream = AsyncGenerator[Event, None]


class Api(Protocol):
    """Every operation both wires offer. Bodies are the HTTP JSON bodies.

    Each method raises burrstone.batching.errors.ServeError. A stream raises it too, at any point; closing the
    stream (aclose) aborts the generation in the engine. `stream: true` in the body asks for a stream.
    """

    async def chat(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream: ...
    async def completions(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream: ...
    async def responses(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream: ...
    async def retrieve_response(
        self, response_id: str, meta: RequestMeta, *, stream: bool, starting_after: int | None
    ) -> JsonObject | Stream: ...
    async def cancel_response(self, response_id: str, meta: RequestMeta) -> JsonObject: ...
    async def delete_response(self, response_id: str, meta: RequestMeta) -> JsonObject: ...
    async def response_input_items(
        self,
        response_id: str,
        meta: RequestMeta,
        *,
        order: Order = "desc",
        after: str | None = None,
        limit: int | None = None,
    ) -> JsonObject: ...
    async def messages(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream: ...
    async def count_tokens(self, body: JsonObject, meta: RequestMeta) -> JsonObject: ...
    async def embeddings(self, body: JsonObject, meta: RequestMeta) -> JsonObject: ...
    async def models(self, meta: RequestMeta) -> JsonObject: ...
    async def model(self, model_id: str, meta: RequestMeta) -> JsonObject: ...
    async def tokenize(self, body: JsonObject, meta: RequestMeta) -> JsonObject: ...
    async def detokenize(self, body: JsonObject, meta: RequestMeta) -> JsonObject: ...
