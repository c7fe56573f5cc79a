"""What is sent and what comes back, over any client: bodies, events of a stream, refusals. Nothing here waits."""

import json
import re
from typing import Any

from burrstone.bench.load.record import Record
from burrstone.bench.stream_client import Rpc
from burrstone.serving.edges.proto_convert import from_json

# An event with some of the answer: text, reasoning, or a piece of a tool call. A chat's first says only who speaks.
_PIECE = re.compile(rb'"(?:text|content|reasoning_content|reasoning|arguments)":\s*"(?!")')
_HAS_USAGE = re.compile(rb'"usage":\s*{')
MAX_ERROR_CHARS = 200
JSON_HEADER = {"Content-Type": "application/json"}


class Refused(Exception):
    """A server's no, before or within the stream."""


def base_url(url: str) -> str:
    """A server's address without a last /v1, which may be given or left out."""
    return url.rstrip("/").removesuffix("/v1")


class EventStream:
    """An answer's server-sent events, however their bytes come, noted in its record."""

    def __init__(self, record: Record, *, keep_text: bool) -> None:
        self._record, self._keep_text = record, keep_text
        self._rest, self._usage, self._done = b"", b"", False
        self._kept: list[bytes] = []

    def feed(self, piece: bytes, now_s: float) -> None:
        """Raises Refused for an error in the stream."""
        *events, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if _PIECE.search(event):
                self._record.pieces_s.append(now_s)
                if self._keep_text:
                    self._kept.append(event)
            if _HAS_USAGE.search(event):
                self._usage = event
            if b'"error":' in event and b'"choices"' not in event:
                raise Refused(f"in the stream: {said(_data(event))}")
            self._done = self._done or event.endswith(b"data: [DONE]")

    def finish(self) -> str:
        """The text, where it is kept."""
        _settle(self._record, _usage(self._usage), done=self._done)
        return "".join(map(_text, self._kept))


class ReplyStream:
    """An answer's gRPC replies, noted in its record."""

    def __init__(self, rpc: Rpc, record: Record) -> None:
        self._rpc, self._record = rpc, record
        self._texts: list[str] = []
        self._usage: dict[str, Any] = {}

    def feed(self, reply: Any, now_s: float) -> None:
        if text := self._rpc.piece(reply):
            self._record.pieces_s.append(now_s)
            self._texts.append(text)
        if reply.usage.completion_tokens:
            self._usage = {
                "completion_tokens": reply.usage.completion_tokens,
                "prompt_tokens": reply.usage.prompt_tokens,
                "prompt_tokens_details": {"cached_tokens": reply.usage.prompt_tokens_details.cached_tokens},
            }

    def finish(self) -> str:
        _settle(self._record, self._usage, done=True)
        return "".join(self._texts)


def payload_of(body: dict[str, Any]) -> bytes:
    return json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()


def call_of(rpc: Rpc, body: dict[str, Any], headers: dict[str, str]) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """(request, metadata)."""
    request = from_json(rpc.request, {"params": body, "stream_options": {"include_usage": True}})
    return request, tuple((name.lower(), value) for name, value in headers.items())


def stub_of(channel: Any, rpc: Rpc) -> Any:
    """The streaming call on a channel, grpc's or grpc.aio's."""
    return channel.unary_stream(
        rpc.path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=rpc.reply.FromString,
    )


def rpc_error(error: Any) -> str:
    return f"{error.code().name} {error.details()}"[:MAX_ERROR_CHARS]


def _settle(record: Record, usage: dict[str, Any], *, done: bool) -> None:
    """A stream that ended well is one with text, its usage and its end."""
    record.output_tokens = int(usage.get("completion_tokens") or 0)
    record.prompt_tokens = usage.get("prompt_tokens")
    record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    missing = [
        what
        for what, there in (("text", record.pieces_s), ("its usage", record.output_tokens), ("its end", done))
        if not there
    ]
    record.error = f"the stream ended without {', '.join(missing)}" if missing else None


def _data(event: bytes) -> bytes:
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))


def _usage(event: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_data(event))["usage"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found


def _text(event: bytes) -> str:
    choice = json.loads(_data(event))["choices"][0]
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


def said(body: bytes) -> str:
    """An error body's code or message, without what differs from request to request where there is a code."""
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error.get("type") or error.get("message"))[:MAX_ERROR_CHARS]
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:MAX_ERROR_CHARS].decode(errors="replace")
