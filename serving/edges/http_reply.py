"""Writing an answer: JSON, a stream of server-sent events, or an error in the caller's envelope."""

import contextlib
import math
import time
from collections.abc import Iterable, Mapping

import msgspec
from starlette.types import Send

from burrstone.batching.errors import InternalError, ServeError
from burrstone.serving.api.messages import error_body as anthropic_error_body
from burrstone.serving.api.types import Event, JsonObject, Stream
from burrstone.serving.status import error_body, wire_status

encode = msgspec.json.encode
_MAX_RETRY_AFTER_S = 120  # SDKs give up on anything longer
_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Reply:
    """One answer on its way out. `anthropic` picks the error envelope of /v1/messages."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.request_id = request_id
        self.started_s = time.monotonic()
        self.anthropic = False
        self.headers_sent = False
        self.notices: Mapping[str, str] = {}

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.headers_sent = True
        elapsed_ms = (time.monotonic() - self.started_s) * 1000
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *headers,
                    *((name.encode(), value.encode()) for name, value in self.notices.items()),
                    (b"x-request-id", self.request_id.encode()),
                    (b"openai-processing-ms", b"%d" % elapsed_ms),
                ],
            }
        )

    async def body(self, data: bytes, *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


async def send_json(reply: Reply, body: JsonObject, *, status: int = 200) -> None:
    await send_plain(reply, "application/json", encode(body), status=status)


async def send_plain(reply: Reply, content_type: str, body: bytes, *, status: int = 200) -> None:
    headers = ((b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body)))
    await reply.start(status, headers)
    await reply.body(body)


async def send_stream(reply: Reply, stream: Stream, *, done_marker: bool) -> None:
    """Server-sent events. The first event is awaited before the headers, so that early errors keep their status."""
    async with contextlib.aclosing(stream):
        first = await anext(stream, None)
        if first is None:
            raise InternalError("The engine ended the stream before it began.")
        await reply.start(200, _STREAM_HEADERS)
        await reply.body(encode_event(first), more=True)
        async for event in stream:
            await reply.body(encode_event(event), more=True)
    await reply.body(b"data: [DONE]\n\n" if done_marker else b"")


def encode_event(event: Event) -> bytes:
    if event.name is None:
        return b"data: %b\n\n" % encode(event.data)
    return b"event: %b\ndata: %b\n\n" % (event.name.encode(), encode(event.data))


async def send_error(reply: Reply, error: ServeError) -> str:
    """The error as a status and envelope, or as a last event when the stream has begun. Returns the metric label."""
    status = wire_status(error)
    body = anthropic_error_body(error, reply.request_id) if reply.anthropic else error_body(error)
    if reply.headers_sent:
        await reply.body(encode_event(Event(body, "error" if reply.anthropic else None)))
        return status.label
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_s is not None:
        seconds = min(_MAX_RETRY_AFTER_S, max(1, math.ceil(error.retry_after_s)))
        headers += [(b"retry-after", b"%d" % seconds)]
    if status.http == 501:
        # SDKs send a 5xx again; what the served model cannot do, it cannot do the second time either.
        headers += [(b"x-should-retry", b"false")]
    if status.http == 401:
        headers += [(b"www-authenticate", b"Bearer")]
    data = encode(body)
    headers += [(b"content-length", b"%d" % len(data))]
    await reply.start(status.http, headers)
    await reply.body(data)
    return status.label
