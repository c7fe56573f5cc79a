"""Ways to reach a server under load: OpenAI's API over HTTP, ours or anybody's, and our gRPC API."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import grpc

from burrstone.bench.load.record import Record
from burrstone.bench.load.streams import (
    JSON_HEADER,
    MAX_ERROR_CHARS,
    EventStream,
    Refused,
    ReplyStream,
    base_url,
    call_of,
    payload_of,
    rpc_error,
    said,
    stub_of,
)
from burrstone.bench.stream_client import ROUTES, RPCS


class Wire(Protocol):
    """`ask` sends one request and fills its record, whatever happens; it returns the answer's text where it is kept."""

    async def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str: ...
    async def close(self) -> None: ...


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
            trace_configs=[_telling_reuse()],
        )

    async def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str:
        payload = payload_of(body)
        record.sent_s = self._now()
        try:
            while True:
                connection = _Connection()
                try:
                    return await self._post(payload, headers, record, connection, keep_text=keep_text)
                except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                    # Some servers close connections without having said so: the pool's fault, which a new one mends.
                    if not connection.reused:
                        raise
        except Refused as refused:
            record.error = str(refused)
            return ""
        except aiohttp.ClientError as error:
            record.error = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
            return ""
        finally:
            record.ended_s = self._now()

    async def _post(
        self, payload: bytes, headers: dict[str, str], record: Record, connection: "_Connection", *, keep_text: bool
    ) -> str:
        stream = EventStream(record, keep_text=keep_text)
        post = self._session.post(self._url, data=payload, headers=JSON_HEADER | headers, trace_request_ctx=connection)
        async with post as reply:
            if reply.status != 200:
                raise Refused(f"{reply.status} {said(await reply.read())}")
            async for piece in reply.content.iter_any():
                stream.feed(piece, self._now())
        return stream.finish()

    async def close(self) -> None:
        await self._session.close()


@dataclass(slots=True)
class _Connection:
    """Whether a request was given one that had carried another before."""

    reused: bool = False


def _telling_reuse() -> aiohttp.TraceConfig:
    async def tell(_: Any, context: Any, __: Any) -> None:
        context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(tell)
    return trace


class GrpcWire:
    """address: host:port of burrstone's gRPC API, without TLS."""

    def __init__(self, address: str, api: str, now: Callable[[], float]) -> None:
        self._now, self._rpc = now, RPCS[api]
        self._channel = grpc.aio.insecure_channel(address)
        self._call = stub_of(self._channel, self._rpc)

    async def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str:
        request, metadata = call_of(self._rpc, body, headers)
        stream = ReplyStream(self._rpc, record)
        record.sent_s = self._now()
        try:
            async for reply in self._call(request, metadata=metadata):
                stream.feed(reply, self._now())
            text = stream.finish()
        except grpc.RpcError as error:
            record.error, text = rpc_error(error), ""
        finally:
            record.ended_s = self._now()
        return text if keep_text else ""

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
