"""Streaming clients that cost as little as a client can: on a small machine their cycles are the server's.

HTTP is spoken over a bare socket and frames are searched, not decoded; gRPC replies stay bytes but for the ends.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grpc

from burrstone.openai.v1 import chat_pb2, completions_pb2
from burrstone.serving.edges.proto_convert import from_json

_SERVICE = "/burrstone.openai.v1."
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Times from just before sending, in seconds; `num_tokens` is what the server's usage says."""

    first_s: float
    total_s: float
    num_tokens: int


class CutAnswer(RuntimeError):
    """A stream that ended without text or without its usage: it failed, and must not count as an answer."""


class StreamClient(Protocol):
    """One way to reach a server."""

    async def stream(self, body: dict[str, Any]) -> Answer: ...
    async def close(self) -> None: ...


class HttpClient:
    """HTTP/1.1 with keep-alive: one connection a concurrent stream, as an SDK's pool holds them."""

    def __init__(self, port: int, api: str) -> None:
        self._port, self._route = port, ROUTES[api]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def stream(self, body: dict[str, Any]) -> Answer:
        payload = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        head = (
            f"POST {self._route} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        reader, writer = await self._connection()
        started_s = time.perf_counter()
        writer.write(head.encode() + payload)
        headers = await reader.readuntil(b"\r\n\r\n")
        if not headers.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{headers!r} {await reader.read(2000)!r}")
        first_s, usage = 0.0, b""
        while True:
            size = int(await reader.readline(), 16)
            chunk = await reader.readexactly(size + 2)
            if size == 0:
                break
            if b'"completion_tokens":' in chunk:
                usage = chunk
            # The first frame of a chat stream says only who speaks; the token comes with the second.
            if not first_s and (b'"text":' in chunk or b'"content":"' in chunk.replace(b'"content":""', b"")):
                first_s = time.perf_counter() - started_s
        self._idle.append((reader, writer))
        found = _COMPLETION_TOKENS.search(usage)
        if not first_s or found is None:
            raise CutAnswer(f"the stream ended with {chunk!r}")
        return Answer(first_s, time.perf_counter() - started_s, int(found[1]))

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()
        self._idle.clear()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()  # servers close what was idle for some seconds
        return await asyncio.open_connection("127.0.0.1", self._port)


class Rpc(NamedTuple):
    """The streaming call of an API; `piece` gives a reply's text, empty for one that has none."""

    path: str
    request: Any
    reply: Any
    piece: Callable[[Any], str]


RPCS = {
    "chat": Rpc(
        f"{_SERVICE}ChatCompletionService/StreamChatCompletion",
        chat_pb2.StreamChatCompletionRequest,
        chat_pb2.StreamChatCompletionResponse,
        lambda reply: next((choice.delta.content for choice in reply.choices if choice.delta.content), ""),
    ),
    "completions": Rpc(
        f"{_SERVICE}CompletionService/StreamCompletion",
        completions_pb2.StreamCompletionRequest,
        completions_pb2.StreamCompletionResponse,
        lambda reply: next((choice.text for choice in reply.choices if choice.text), ""),
    ),
}


class GrpcClient:
    """One HTTP/2 channel for all streams."""

    def __init__(self, port: int, api: str) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._rpc = RPCS[api]
        self._call: Any = self._channel.unary_stream(
            self._rpc.path, request_serializer=lambda message: message.SerializeToString()
        )

    async def stream(self, body: dict[str, Any]) -> Answer:
        request = from_json(self._rpc.request, {"params": body, "stream_options": {"include_usage": True}})
        started_s = time.perf_counter()
        first_s, last = 0.0, b""
        async for last in self._call(request):
            if not first_s and self._rpc.piece(self._rpc.reply.FromString(last)):
                first_s = time.perf_counter() - started_s
        num_tokens = int(self._rpc.reply.FromString(last).usage.completion_tokens)
        if not first_s or not num_tokens:
            raise CutAnswer(f"the stream ended with {last!r}")
        return Answer(first_s, time.perf_counter() - started_s, num_tokens)

    async def close(self) -> None:
        await self._channel.close()
