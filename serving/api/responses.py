"""The Responses API as a dialect of chat completions, with a store of its own."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal

from burrstone.batching.errors import Conflict, InternalError, NotFound, ServeError
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.base import UnknownFields, parse_model, reject
from burrstone.serving.api.renaming import renamed
from burrstone.serving.api.response_store import ResponseStore, StoredResponse
from burrstone.serving.api.responses_convert import check, new_response, refuse_unsupported, to_chat
from burrstone.serving.api.responses_input import input_messages, listed_items, output_messages, resolve_input
from burrstone.serving.api.responses_schema import CreateResponse
from burrstone.serving.api.responses_stream import ResponseBuilder
from burrstone.serving.api.types import JsonObject, Stream
from burrstone.serving.config import LimitsConfig

log = logging.getLogger("burrstone.responses")
Chat = Callable[[JsonObject, RequestMeta], Awaitable[JsonObject | Stream]]
Chunks = AsyncGenerator[JsonObject, None]
Track = Callable[[], contextlib.AbstractContextManager[None]]
_RENAMES = [
    (r"messages.*", "input"),
    (r"max_(completion_)?tokens", "max_output_tokens"),
    (r"response_format(\.json_schema)?", "text.format"),
    (r"reasoning_effort", "reasoning.effort"),
    (r"(tools\[\d+\])\.function", r"\1"),
]


class ResponsesApi:
    """Create, retrieve, cancel and delete. Every response is made by one stream of chat chunks.

    `track()` is held while a response runs in the background, so that draining waits for it.
    """

    def __init__(
        self,
        chat: Chat,
        limits: LimitsConfig,
        unknown_fields: UnknownFields,
        *,
        store: ResponseStore | None = None,
        track: Track = contextlib.nullcontext,
    ) -> None:
        self._chat = chat
        self._limits = limits
        self._unknown_fields = unknown_fields
        self._store = store or ResponseStore()
        self._track = track

    async def create(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream:
        refuse_unsupported(body)
        request = parse_model(CreateResponse, body, self._unknown_fields)
        check(request, self._limits)
        items = resolve_input(request, lambda item_id: self._find_item(item_id, meta))
        history = self._history(request, meta)
        turns = history + input_messages(items, history)
        if request.background:
            # It outlives the call that creates it, and so that call's deadline.
            deadline_s = time.monotonic() + self._limits.request_timeout_s
            meta = dataclasses.replace(meta, deadline_s=deadline_s, asked_deadline_s=None)
        chunks = await self._open(to_chat(request, turns), meta)
        response = new_response(request, "queued" if request.background else "in_progress")
        stored = StoredResponse(meta.tenant, response, listed_items(items), turns)
        if request.background:
            return self._start_background(stored, chunks, stream=bool(request.stream))
        builder = ResponseBuilder(response)
        keep = request.store is not False
        if request.stream:
            return self._failing_in_stream(builder, stored, chunks, keep=keep)
        async with contextlib.aclosing(self._run(builder, stored, chunks, keep=keep)) as events:
            async for _ in events:
                pass
        return response

    async def retrieve(
        self, response_id: str, meta: RequestMeta, *, stream: bool, starting_after: int | None
    ) -> JsonObject | Stream:
        stored = self._store.get(response_id, meta.tenant)
        if not stream:
            return stored.response
        if not stored.streamed:
            raise reject("Only a response created with background and stream can be streamed again.", "stream")
        position = 0 if starting_after is None else starting_after + 1
        if stored.finished and position >= len(stored.events):
            raise reject(
                f"Invalid value for 'starting_after': the last event of this response is {len(stored.events) - 1}.",
                "starting_after",
            )
        return _replay(stored, position)

    async def cancel(self, response_id: str, meta: RequestMeta) -> JsonObject:
        stored = self._store.get(response_id, meta.tenant)
        if not stored.response["background"]:
            raise reject("Cannot cancel a synchronous response; close its connection instead.", "response_id")
        await _stop(stored)
        return stored.response

    async def delete(self, response_id: str, meta: RequestMeta) -> JsonObject:
        await _stop(self._store.delete(response_id, meta.tenant))
        return {"id": response_id, "object": "response.deleted", "deleted": True}

    async def input_items(
        self,
        response_id: str,
        meta: RequestMeta,
        *,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        limit: int | None = None,
    ) -> JsonObject:
        """The input items after item `after`, newest first unless `order` is asc; all of them without a `limit`."""
        items = self._store.get(response_id, meta.tenant).input_items
        if order == "desc":
            items = items[::-1]
        if after is not None:
            places = [number for number, item in enumerate(items) if item["id"] == after]
            if not places:
                raise reject("Invalid value for 'after': this response has no such item.", "after")
            items = items[places[0] + 1 :]
        page = items if limit is None else items[:limit]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(page) < len(items),
        }

    def _history(self, request: CreateResponse, meta: RequestMeta) -> list[JsonObject]:
        wanted = request.previous_response_id
        if wanted is None:
            return []
        try:
            previous = self._store.get(wanted, meta.tenant)
        except NotFound:
            raise reject(
                f"Previous response with id '{wanted[:64]}' not found.",
                "previous_response_id",
                "previous_response_not_found",
            ) from None
        if not previous.finished:
            raise Conflict("The previous response is still running.", param="previous_response_id")
        return previous.history + output_messages(previous.response["output"])

    def _find_item(self, item_id: str, meta: RequestMeta) -> JsonObject:
        item = self._store.find_item(item_id, meta.tenant)
        if item is None:
            raise NotFound(
                f"Item with id '{item_id[:64]}' not found: only items of stored responses can be referred to.",
                param="input",
                code="item_not_found",
            )
        return item

    async def _open(self, chat_body: JsonObject, meta: RequestMeta) -> Chunks:
        """The chunks of a chat stream. What is wrong with the request is raised here, before anything is promised."""
        chat_body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            events = await self._chat(chat_body, meta)
        except ServeError as error:
            raise renamed(error, _RENAMES) from error
        if isinstance(events, dict):
            raise InternalError("The engine answered once where a stream was asked for.")
        return _chunks(events)

    async def _run(self, builder: ResponseBuilder, stored: StoredResponse, chunks: Chunks, *, keep: bool) -> Stream:
        """Events of one response; raises ServeError at any point. It is stored before its last event is out."""
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                # Nothing is sent before the first chunk, so that an early error keeps its status.
                for event in ([] if builder.started else builder.start()) + builder.grow(chunk):
                    yield event
        if not builder.started:
            raise InternalError("The engine ended the answer before it began.")
        last = builder.finish()
        if keep:
            self._store.put(stored)
        for event in last:
            yield event

    async def _failing_in_stream(
        self, builder: ResponseBuilder, stored: StoredResponse, chunks: Chunks, *, keep: bool
    ) -> Stream:
        """The same events; a failure after the first one becomes a last event, response.failed."""
        async with contextlib.aclosing(self._run(builder, stored, chunks, keep=keep)) as events:
            try:
                async for event in events:
                    yield event
                return
            except ServeError as error:
                if not builder.started:
                    raise
                last = builder.fail(error)
        if keep:
            self._store.put(stored)
        for event in last:
            yield event

    def _start_background(self, stored: StoredResponse, chunks: Chunks, *, stream: bool) -> JsonObject | Stream:
        stored.streamed = stream
        self._store.put(stored)
        tracked = contextlib.ExitStack()
        tracked.enter_context(self._track())
        stored.task = asyncio.create_task(self._background(stored, chunks))
        # Not in the task: one that is cancelled before its first step runs none of its code.
        stored.task.add_done_callback(lambda _: tracked.close())
        return _replay(stored, 0) if stream else stored.response | {"output": []}

    async def _background(self, stored: StoredResponse, chunks: Chunks) -> None:
        builder = ResponseBuilder(stored.response)
        last = []
        try:
            async with contextlib.aclosing(self._run(builder, stored, chunks, keep=False)) as events:
                async for event in events:
                    if stored.streamed:
                        self._store.append(stored, event)
                        stored.announce()
        except asyncio.CancelledError:
            last = builder.cancel()
        except ServeError as error:
            last = builder.fail(error)
        except Exception:
            log.exception("background response %s failed", stored.response["id"])
            last = builder.fail(InternalError("The server failed to answer this request."))
        if stored.streamed:
            stored.events += last
        self._store.refresh(stored)
        stored.announce()


async def _chunks(events: Stream) -> Chunks:
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event.data
    except ServeError as error:
        raise renamed(error, _RENAMES) from error


async def _replay(stored: StoredResponse, position: int) -> Stream:
    """Events from `position` on: those kept, then those to come."""
    while True:
        changed = stored.changed
        while position < len(stored.events):
            yield stored.events[position]
            position += 1
        if stored.finished:
            return
        await changed.wait()


async def _stop(stored: StoredResponse) -> None:
    if stored.task is None or stored.finished:
        return
    stored.task.cancel()
    await asyncio.wait((stored.task,))
    if not stored.finished:  # cancelled before its first step, so it could not say so itself
        stored.response["status"] = "cancelled"
        stored.announce()
