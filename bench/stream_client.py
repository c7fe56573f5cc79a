"""Streaming clients that cost as little as a client can: on a small machine their cycles are the server's.

HTTP is spoken over a bare socket and frames are counted, not decoded; gRPC replies stay bytes.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from burrstone.openai.v1 import chat_pb2, completions_pb2
from burrstone.serving.edges.proto_convert import from_json

_SERVICE = "/burrstone.openai.v1."
_ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Times from just before sending, in seconds; `frames` counts stream messages that carry text or the end."""

    first_s: float
    total_s: float
    frames: int


class StreamClient(Protocol):
    """One way to reach a server."""

    async def stream(self, body: dict[str, Any]) -> Answer: ...
    async def close(self) -> None: ...


class HttpClient:
    """HTTP/1.1 with keep-alive: one connection a concurrent stream, as an SDK's pool holds them."""

    def __init__(self, port: int, api: str) -> None:
        self._port, self._route = port, _ROUTES[api]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def stream(self, body: dict[str, Any]) -> Answer:
        payload = json.dumps(body | {"stream": True}).encode()
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
        first_s, frames = 0.0, 0
        while True:
            size = int(await reader.readline(), 16)
            chunk = await reader.readexactly(size + 2)
            if size == 0:
                break
            frames += chunk.count(b"data: {")
            # The first frame of a chat stream says only who speaks; the token comes with the second.
            if not first_s and (b'"text":' in chunk or b'"content":"' in chunk.replace(b'"content":""', b"")):
                first_s = time.perf_counter() - started_s
        self._idle.append((reader, writer))
        return Answer(first_s, time.perf_counter() - started_s, frames)

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


class GrpcClient:
    """One HTTP/2 channel for all streams."""

    def __init__(self, port: int, api: str) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        chat = api == "chat"
        method = "ChatCompletionService/StreamChatCompletion" if chat else "CompletionService/StreamCompletion"
        self._request = chat_pb2.StreamChatCompletionRequest if chat else completions_pb2.StreamCompletionRequest
        self._call: Any = self._channel.unary_stream(
            f"{_SERVICE}{method}", request_serializer=lambda message: message.SerializeToString()
        )
        # Where the text lies in a frame that has any; the first chat frame has none.
        self._reply = chat_pb2.StreamChatCompletionResponse if chat else completions_pb2.StreamCompletionResponse
        self._chat = chat

    async def stream(self, body: dict[str, Any]) -> Answer:
        request = from_json(self._request, {"params": body})
        started_s = time.perf_counter()
        first_s, frames = 0.0, 0
        async for frame in self._call(request):
            frames += 1
            if not first_s and self._has_text(frame):
                first_s = time.perf_counter() - started_s
        return Answer(first_s, time.perf_counter() - started_s, frames)

    async def close(self) -> None:
        await self._channel.close()

    def _has_text(self, frame: bytes) -> bool:
        choice: Any = self._reply.FromString(frame).choices[0]
        return bool(choice.delta.content if self._chat else choice.text)
