"""The Responses API as a dialect of chat completions, with a store of its own."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from burrstone.batching.errors import Conflict, InternalError, NotFound, ServeError
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.base import UnknownFields, parse_model, reject
from burrstone.serving.api.response_store import ResponseStore, StoredResponse
from burrstone.serving.api.responses_convert import check, check_tool_types, input_items, new_response, to_chat
from burrstone.serving.api.responses_schema import CreateResponse
from burrstone.serving.api.responses_stream import ResponseBuilder, failed_event, output_messages
from burrstone.serving.api.types import JsonObject, Stream
from burrstone.serving.config import LimitsConfig

log = logging.getLogger("burrstone.responses")
Chat = Callable[[JsonObject, RequestMeta], Awaitable[JsonObject | Stream]]


class ResponsesApi:
    """Create, retrieve, cancel and delete. Every response is made by one stream of chat chunks."""

    def __init__(self, chat: Chat, limits: LimitsConfig, unknown_fields: UnknownFields) -> None:
        self._chat = chat
        self._limits = limits
        self._unknown_fields = unknown_fields
        self._store = ResponseStore()

    async def create(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream:
        check_tool_types(body)
        request = parse_model(CreateResponse, body, self._unknown_fields)
        check(body, request)
        if request.top_logprobs is not None and request.top_logprobs > self._limits.max_logprobs:
            raise reject(f"Invalid value for 'top_logprobs': at most {self._limits.max_logprobs}.", "top_logprobs")
        chat_body, turns = to_chat(request, self._history(request, meta), lambda item: self._resolve(item, meta))
        chat_body |= {"stream": True, "stream_options": {"include_usage": True}}
        response = new_response(request, "queued" if request.background else "in_progress")
        stored = StoredResponse(meta.tenant, response, input_items(request), turns)
        if request.background:
            return await self._start_background(stored, chat_body, meta, stream=bool(request.stream))
        events = self._run(stored, chat_body, meta, keep=request.store is not False)
        if request.stream:
            return self._failing_in_stream(events, stored)
        async with contextlib.aclosing(events):
            async for _ in events:
                pass
        return stored.response

    async def retrieve(
        self, response_id: str, meta: RequestMeta, *, stream: bool, starting_after: int | None
    ) -> JsonObject | Stream:
        stored = self._store.get(response_id, meta.tenant)
        if not stream:
            return stored.response
        if not stored.events:
            raise reject("Only a response created with background and stream can be streamed again.", "stream")
        return self._replay(stored, -1 if starting_after is None else starting_after)

    async def cancel(self, response_id: str, meta: RequestMeta) -> JsonObject:
        stored = self._store.get(response_id, meta.tenant)
        if not stored.response["background"]:
            raise Conflict("Only a background response can be cancelled; close the connection of any other.")
        if stored.task is not None and not stored.finished:
            stored.task.cancel()
            await asyncio.wait((stored.task,))
        return stored.response

    async def delete(self, response_id: str, meta: RequestMeta) -> JsonObject:
        stored = self._store.delete(response_id, meta.tenant)
        if stored.task is not None:
            stored.task.cancel()
        return {"id": response_id, "object": "response.deleted", "deleted": True}

    async def input_items(self, response_id: str, meta: RequestMeta) -> JsonObject:
        items = self._store.get(response_id, meta.tenant).input_items
        ids = [item["id"] for item in items]
        return {
            "object": "list",
            "data": items,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": False,
        }

    def _history(self, request: CreateResponse, meta: RequestMeta) -> list[JsonObject]:
        if request.previous_response_id is None:
            return []
        previous = self._store.get(request.previous_response_id, meta.tenant, param="previous_response_id")
        if not previous.finished:
            raise Conflict("The previous response is still running.", param="previous_response_id")
        return [*previous.history, *output_messages(previous.response)]

    def _resolve(self, item_id: str, meta: RequestMeta) -> list[JsonObject]:
        raise NotFound(
            f"Item '{item_id[:64]}' not found: send the item itself, or use previous_response_id.",
            param="input",
            code="item_not_found",
        )

    async def _failing_in_stream(self, events: Stream, stored: StoredResponse) -> Stream:
        """The same events; a failure after the first one becomes a last event, response.failed."""
        sequence = -1
        try:
            async for event in events:
                sequence = event.data["sequence_number"]
                yield event
        except ServeError as error:
            if sequence < 0:
                raise
            yield failed_event(stored.response, error, sequence + 1)
        finally:
            await events.aclose()

    async def _run(self, stored: StoredResponse, chat_body: JsonObject, meta: RequestMeta, *, keep: bool) -> Stream:
        """Events of one response; raises ServeError at any point. What is kept is stored before the last event."""
        builder = ResponseBuilder(stored.response)
        chunks = await self._chat(chat_body, meta)
        if isinstance(chunks, dict):
            raise InternalError("The engine answered once where a stream was asked for.")
        try:
            first = await anext(chunks)
            for event in builder.start() + builder.grow(first.data):
                yield event
            async for chunk in chunks:
                for event in builder.grow(chunk.data):
                    yield event
            last = builder.finish()
            if keep:
                self._store.put(stored)
            for event in last:
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            builder.cancel()
            raise
        finally:
            await chunks.aclose()

    async def _start_background(
        self, stored: StoredResponse, chat_body: JsonObject, meta: RequestMeta, *, stream: bool
    ) -> JsonObject | Stream:
        self._store.put(stored)
        snapshot = dict(stored.response)
        stored.task = asyncio.create_task(self._background(stored, chat_body, meta, stream=stream))
        return self._replay(stored, -1) if stream else snapshot

    async def _background(
        self, stored: StoredResponse, chat_body: JsonObject, meta: RequestMeta, *, stream: bool
    ) -> None:
        try:
            async for event in self._run(stored, chat_body, meta, keep=True):
                if stream:
                    stored.events.append(event)
                stored.announce()
        except asyncio.CancelledError:
            stored.response["status"] = "cancelled"
        except ServeError as error:
            failed = failed_event(stored.response, error, len(stored.events))
            stored.events += [failed] if stream else []
        except Exception:
            log.exception("background response %s failed", stored.response["id"])
            stored.response |= {"status": "failed", "error": {"code": "server_error", "message": "internal error"}}
        finally:
            stored.announce()

    async def _replay(self, stored: StoredResponse, after: int) -> Stream:
        """Events past sequence number `after`: those kept, then those to come."""
        position = after + 1
        while True:
            changed = stored.changed
            while position < len(stored.events):
                yield stored.events[position]
                position += 1
            if stored.finished or (stored.task is not None and stored.task.done()):
                return
            await changed.wait()
