"""Ways to reach a server from locust's greenlets. What the bytes mean is shared with the wires for asyncio."""

import ssl
from collections.abc import Callable
from typing import Any, Protocol

import gevent
import grpc
import grpc.experimental.gevent
import urllib3

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

_READ_BYTES = 2**16
_CONNECT_TIMEOUT_S = 30.0
# Idle connections that are kept. More may be open at once: a client that queues hides what the server makes it wait.
_IDLE_CONNECTIONS = 10_000


class GreenWire(Protocol):
    """`ask` sends one request and fills its record, whatever happens; it returns the answer's text where it is kept."""

    def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str: ...
    def close(self) -> None: ...


class GreenHttp:
    """url: as `HttpWire` takes it. now: seconds since the run's start."""

    def __init__(self, url: str, api: str, now: Callable[[], float]) -> None:
        self._url, self._now = base_url(url) + ROUTES[api], now
        context = ssl.create_default_context() if url[:5] == "https" else None
        self._pool = urllib3.PoolManager(
            maxsize=_IDLE_CONNECTIONS,
            retries=False,
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=None),
            ssl_context=context,
        )

    def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str:
        payload = payload_of(body)
        stream = EventStream(record, keep_text=keep_text)
        record.sent_s = self._now()
        reply: urllib3.BaseHTTPResponse | None = None
        try:
            reply = self._pool.request(
                "POST", self._url, body=payload, headers=JSON_HEADER | headers, preload_content=False
            )
            if reply.status != 200:
                raise Refused(f"{reply.status} {said(reply.read())}")
            while piece := reply.read1(_READ_BYTES):
                stream.feed(piece, self._now())
            text = stream.finish()
            # Read to its end, it goes back to the pool; whatever else became of it is closed below.
            reply = None
            return text
        except Refused as refused:
            record.error = str(refused)
            return ""
        except (urllib3.exceptions.HTTPError, OSError) as error:
            record.error = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
            return ""
        finally:
            record.ended_s = self._now()
            if reply is not None:
                reply.close()

    def close(self) -> None:
        self._pool.clear()


class GreenGrpc:
    """address: host:port of burrstone's gRPC API, without TLS."""

    def __init__(self, address: str, api: str, now: Callable[[], float]) -> None:
        # Only where it is used, and after locust has forked its workers.
        grpc.experimental.gevent.init_gevent()
        self._now, self._rpc = now, RPCS[api]
        self._channel = grpc.insecure_channel(address)
        self._call = stub_of(self._channel, self._rpc)

    def ask(self, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool) -> str:
        request, metadata = call_of(self._rpc, body, headers)
        stream = ReplyStream(self._rpc, record)
        record.sent_s = self._now()
        replies: Any = None
        try:
            replies = self._call(request, metadata=metadata)
            for reply in replies:
                stream.feed(reply, self._now())
            text = stream.finish()
        except grpc.RpcError as error:
            record.error, text = rpc_error(error), ""
        finally:
            record.ended_s = self._now()
            if replies is not None:
                replies.cancel()
        return text if keep_text else ""

    def close(self) -> None:
        self._channel.close()


def ask_within(
    wire: GreenWire, timeout_s: float, body: dict[str, Any], record: Record, headers: dict[str, str], *, keep_text: bool
) -> str:
    """`ask`, given up after timeout_s. A greenlet that is stopped meanwhile leaves a record that failed."""
    timeout = gevent.Timeout(timeout_s)
    try:
        with timeout:
            return wire.ask(body, record, headers, keep_text=keep_text)
    except gevent.Timeout as given_up:
        if given_up is not timeout:
            raise
        record.error = f"no end within {timeout_s:g} s"
        return ""
    except gevent.GreenletExit:
        record.error = "the run was stopped before its end"
        raise
