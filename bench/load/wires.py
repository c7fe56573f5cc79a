"""Ways to reach a server under load: OpenAI's API over HTTP, ours or anybody's, and our gRPC API."""

import asyncio
import json
import re
import ssl
from collections.abc import Callable
from typing import Any, Protocol

import aiohttp
import grpc

from burrstone.bench.load.record import Record
from burrstone.bench.stream_client import ROUTES, RPCS
from burrstone.serving.edges.proto_convert import from_json

# An event with some of the answer: text, reasoning, or a piece of a tool call. A chat's first says only who speaks.
_PIECE = re.compile(rb'"(?:text|content|reasoning_content|reasoning|arguments)":\s*"(?!")')
_HAS_USAGE = re.compile(rb'"usage":\s*{')
_MAX_ERROR_CHARS = 200


class Wire(Protocol):
    """`ask` sends one request and fills its record, whatever happens; it returns the answer's text where it is kept."""

    async def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str: ...
    async def close(self) -> None: ...


def base_url(url: str) -> str:
    """A server's address without a last /v1, which may be given or left out."""
    return url.rstrip("/").removesuffix("/v1")


class HttpWire:
    """url: http(s)://host[:port][/prefix], with or without a last /v1. now: seconds since the run's start."""

    def __init__(self, url: str, api: str, now: Callable[[], float]) -> None:
        self._url = base_url(url) + ROUTES[api]
        self._now = now
        self._session = aiohttp.ClientSession(
            # A pool of any size: a client that queues hides what the server makes it wait.
            connector=aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context() if url[:5] == "https" else False),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0),
            read_bufsize=2**20,
        )

    async def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str:
        payload = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        headers = {"Content-Type": "application/json", **headers}
        record.sent_s = self._now()
        try:
            async with self._session.post(self._url, data=payload, headers=headers) as reply:
                if reply.status != 200:
                    record.error = f"{reply.status} {_said(await reply.read())}"
                    return ""
                return await self._read(reply, record, keep_text=keep_text)
        except aiohttp.ClientError as error:
            record.error = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
            return ""
        finally:
            record.ended_s = self._now()

    async def _read(self, reply: aiohttp.ClientResponse, record: Record, *, keep_text: bool) -> str:
        rest, usage, kept, done = b"", b"", list[bytes](), False
        async for piece in reply.content.iter_any():
            now_s = self._now()
            *events, rest = (rest + piece.replace(b"\r\n", b"\n")).split(b"\n\n")
            for event in events:
                if _PIECE.search(event):
                    record.pieces_s.append(now_s)
                    if keep_text:
                        kept.append(event)
                if _HAS_USAGE.search(event):
                    usage = event
                if b'"error":' in event and b'"choices"' not in event:
                    record.error = f"in the stream: {_said(_data(event))}"
                    return ""
                done = done or event.endswith(b"data: [DONE]")
        _settle(record, _usage(usage), done=done)
        return "".join(map(_text, kept))

    async def close(self) -> None:
        await self._session.close()


class GrpcWire:
    """address: host:port of burrstone's gRPC API, without TLS."""

    def __init__(self, address: str, api: str, now: Callable[[], float]) -> None:
        self._now, self._rpc = now, RPCS[api]
        self._channel = grpc.aio.insecure_channel(address)
        self._call: Any = self._channel.unary_stream(
            self._rpc.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._rpc.reply.FromString,
        )

    async def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str:
        request = from_json(self._rpc.request, {"params": body, "stream_options": {"include_usage": True}})
        metadata = tuple((name.lower(), value) for name, value in headers.items())
        texts, usage = list[str](), {}
        record.sent_s = self._now()
        try:
            async for reply in self._call(request, metadata=metadata):
                if text := self._rpc.piece(reply):
                    record.pieces_s.append(self._now())
                    texts.append(text)
                if reply.usage.completion_tokens:
                    usage = {
                        "completion_tokens": reply.usage.completion_tokens,
                        "prompt_tokens": reply.usage.prompt_tokens,
                        "prompt_tokens_details": {"cached_tokens": reply.usage.prompt_tokens_details.cached_tokens},
                    }
            _settle(record, usage, done=True)
        except grpc.RpcError as error:
            record.error = f"{error.code().name} {error.details()}"[:_MAX_ERROR_CHARS]
        finally:
            record.ended_s = self._now()
        return "".join(texts) if keep_text else ""

    async def close(self) -> None:
        await self._channel.close()


async def within(
    wire: Wire, timeout_s: float, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool
) -> str:
    """`ask`, given up after timeout_s."""
    try:
        async with asyncio.timeout(timeout_s):
            return await wire.ask(body, record, headers, keep_text=keep_text)
    except TimeoutError:
        record.error = f"no end within {timeout_s:g} s"
        return ""


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


def _said(body: bytes) -> str:
    """An error body's code or message, without what differs from request to request where there is a code."""
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error.get("type") or error.get("message"))[:_MAX_ERROR_CHARS]
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:_MAX_ERROR_CHARS].decode(errors="replace")
