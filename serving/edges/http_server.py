"""The replica's own HTTP listener: uvicorn with bounded headers, on a socket bound before the engine starts."""

import asyncio
import socket
import ssl
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from burrstone.serving.config import ServeConfig

_REFUSE_HEADERS = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
)
_HEADERS_BODY = (
    b'{"error":{"message":"The request headers are too large.","type":"invalid_request_error","param":null,'
    b'"code":"headers_too_large"}}'
)


# A connection that was closed has this long to take what was written to it; then it is cut.
_LINGER_S = 5.0
_LAST_WORDS_S = 1.0
# Open connections, idle ones included; requests are counted by the HTTP edge.
_MAX_CONNECTIONS = 10_000


def bounded_protocol(
    max_header_bytes: int, max_connections: int, arrival_timeout_s: float, answer_timeout_s: float
) -> type[HttpToolsProtocol]:
    """uvicorn's parser with limits: on header bytes, on open connections (new ones are cut), on how long headers, and then
    a body, may take to arrive, and on how long answers may take to be read."""

    class BoundedProtocol(HttpToolsProtocol):
        _header_bytes = 0
        _arrival_timer: asyncio.TimerHandle | None = None
        _answer_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            self._start_timer(arrival_timeout_s)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._stop_answer_timer()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._header_bytes = 0
            self._start_timer(arrival_timeout_s)  # again, for a later request on the same connection
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            # A body that comes too late has been answered by then; one that was refused unread may still be coming.
            self._start_timer(arrival_timeout_s + _LAST_WORDS_S)
            if not self.transport.is_closing():
                super().on_headers_complete()
                self._start_answer_timer()

        def on_message_complete(self) -> None:
            self._stop_timer()
            super().on_message_complete()

        def on_response_complete(self) -> None:
            self._stop_answer_timer()
            if self.pipeline:
                self._start_answer_timer()
            elif self.transport.is_closing():
                self._cut_later()
            super().on_response_complete()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._cut_later()

        def _count(self, num_bytes: int) -> None:
            self._header_bytes += num_bytes
            if self._header_bytes > max_header_bytes and not self.transport.is_closing():
                self.transport.write(_REFUSE_HEADERS % (len(_HEADERS_BODY), _HEADERS_BODY))
                self.transport.close()
                self._cut_later()

        def _cut_later(self) -> None:
            # Closing waits until everything written is sent, which a peer that never reads puts off for ever.
            self.loop.call_later(_LINGER_S, self.transport.abort)

        def _start_answer_timer(self) -> None:
            # The engine ends a request at its deadline, but a peer that never reads holds its answer, and the
            # connection, for as long as it likes.
            if self._answer_timer is None:
                self._answer_timer = self.loop.call_later(answer_timeout_s, self.transport.abort)

        def _stop_answer_timer(self) -> None:
            if self._answer_timer is not None:
                self._answer_timer.cancel()
                self._answer_timer = None

        def _start_timer(self, delay_s: float) -> None:
            self._stop_timer()
            self._arrival_timer = self.loop.call_later(delay_s, self.transport.close)

        def _stop_timer(self) -> None:
            if self._arrival_timer is not None:
                self._arrival_timer.cancel()
                self._arrival_timer = None

    return BoundedProtocol


class HttpListener:
    """Serves an ASGI app on config.http until stopped."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        settings = uvicorn.Config(
            app,
            http=bounded_protocol(
                config.limits.max_header_bytes,
                _MAX_CONNECTIONS,
                arrival_timeout_s=config.http.body_timeout_s,
                answer_timeout_s=config.http.body_timeout_s + config.limits.request_timeout_s + _LINGER_S,
            ),
            ws="none",
            lifespan="off",
            loop="none",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(config.http.idle_timeout_s),
            ssl_certfile=config.tls.cert,
            ssl_keyfile=None if config.tls.key is None else str(config.tls.key),
            ssl_ca_certs=None if config.tls.client_ca is None else str(config.tls.client_ca),
            ssl_cert_reqs=ssl.CERT_NONE if config.tls.client_ca is None else ssl.CERT_REQUIRED,
        )
        self._server = uvicorn.Server(settings)
        self._task: asyncio.Task[None] | None = None

    async def start(self, sock: socket.socket) -> None:
        """Serve on a bound socket; returns once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Close the listener and what is left of its connections."""
        if self._task is None:
            return
        self._server.should_exit = True
        self._server.force_exit = True
        await self._task


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; raises OSError when the port is taken. Port 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A replaced replica takes its predecessor's port while old connections linger in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
