"""The replica's own gRPC listener: authentication, deadlines, cancellation, health and reflection over the RPC table."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from burrstone.batching.errors import DeadlineExceeded, InternalError, InvalidRequest, ServeError
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.types import Api
from burrstone.serving.auth import Authenticator, presented_key
from burrstone.serving.config import ConfigError, ServeConfig, TlsConfig
from burrstone.serving.edges.grpc_builtin import HEALTH_NAME, add_health, add_reflection
from burrstone.serving.edges.grpc_errors import REQUEST_ID_KEY, fail
from burrstone.serving.edges.grpc_rpcs import Rpc, Streaming, rpcs
from burrstone.serving.edges.ids import request_id_from
from burrstone.serving.edges.lifecycle import Lifecycle
from burrstone.serving.edges.metadata import request_meta
from burrstone.serving.edges.proto_convert import check_known
from burrstone.serving.edges.proto_convert_tables import PACKAGE
from burrstone.serving.metrics import ApiMetrics

log = logging.getLogger("burrstone.grpc")
Context = Any  # grpc.aio.ServicerContext, whose stubs lack the methods used here
Answer = Callable[[Rpc, Api, Any, Context, RequestMeta], Awaitable[Message | None]]
_MAX_SEND_BYTES = 64 * 2**20
_MIN_PING_INTERVAL_MS = 10_000
_KEEPALIVE_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000
# The engine ends a request at its deadline; this long after, the call of a client that stopped reading ends too.
_DEADLINE_GRACE_S = 1.0


class GrpcListener:
    """Serves the RPC table on config.grpc.port until stopped."""

    def __init__(
        self, config: ServeConfig, lifecycle: Lifecycle, authenticator: Authenticator, metrics: ApiMetrics
    ) -> None:
        self._config = config
        self._lifecycle = lifecycle
        self._authenticator = authenticator
        self._metrics = metrics
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Bind and accept. Raises RuntimeError when the port is taken."""
        server = grpc.aio.server(
            maximum_concurrent_rpcs=self._config.grpc.max_concurrent_rpcs,
            options=[
                ("grpc.max_receive_message_length", self._config.limits.max_body_bytes),
                ("grpc.max_send_message_length", _MAX_SEND_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.max_metadata_size", self._config.limits.max_header_bytes),
                ("grpc.absolute_max_metadata_size", self._config.limits.max_header_bytes),
                # Pings find clients that vanished without a goodbye, so that their generations end.
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
            ],
        )
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for rpc in rpcs(self._config.limits):
            services.setdefault(f"{PACKAGE}.{rpc.service}", {})[rpc.name] = self._handler(rpc)
        for name, methods in services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        add_health(server, self._lifecycle, list(services), self._config.grpc.max_concurrent_rpcs)
        if self._config.grpc.reflection:
            add_reflection(server, self._authenticator, [*services, HEALTH_NAME])
        self.port = _bind(server, self._config)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Close the listener and what is left of its calls."""
        if self._server is not None:
            await self._server.stop(grace=0)

    def _handler(self, rpc: Rpc) -> "grpc.RpcMethodHandler[Any, Any]":
        streams = isinstance(rpc.call, Streaming)
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        answer: Answer = self._answer_stream if streams else self._answer_once

        async def serve(request: Message | DecodeError, context: Context) -> Message | None:
            with self._lifecycle.track(), self._observed(rpc, context) as seen:
                metadata = dict(context.invocation_metadata() or ())
                request_id = request_id_from(metadata.get(REQUEST_ID_KEY))
                try:
                    asked_timeout_s: float | None = context.time_remaining()
                    timeout_s = self._timeout_s(asked_timeout_s)
                    meta = self._meta(metadata, request_id, timeout_s, asked_timeout_s)
                    api = self._lifecycle.api()
                    self._check(request)
                    async with asyncio.timeout(timeout_s + _DEADLINE_GRACE_S):
                        return await answer(rpc, api, request, context, meta)
                except Exception as error:  # noqa: BLE001  the edge answers every failure
                    seen.append(fail(context, _known(error, request_id), request_id))
                    return None

        return make(serve, request_deserializer=_deserializer(rpc.request), response_serializer=_serialize)

    async def _answer_once(self, rpc: Rpc, api: Api, request: Any, context: Context, meta: RequestMeta) -> Message:
        reply: Message = await rpc.call(api, request, meta)  # type: ignore[operator]
        await context.send_initial_metadata(_initial_metadata(meta))
        return reply

    async def _answer_stream(self, rpc: Rpc, api: Api, request: Any, context: Context, meta: RequestMeta) -> None:
        """The first event is awaited before the initial metadata, so that an early error is the whole answer."""
        call: Streaming = rpc.call  # type: ignore[assignment]
        encode, write = call.encode, context.write
        # Leaving this block for any reason, a cancelled call included, ends the generation in the engine.
        async with contextlib.aclosing(await call.open(api, request, meta)) as events:
            first = await anext(events, None)
            if first is None:
                raise InternalError("The engine ended the stream before it began.")
            await context.send_initial_metadata(_initial_metadata(meta))
            await write(encode(first))
            async for event in events:
                await write(encode(event))

    def _check(self, request: Message | DecodeError) -> None:
        if isinstance(request, DecodeError):
            raise InvalidRequest("The request is not a valid protobuf message.", code="invalid_protobuf")
        if self._config.unknown_fields == "reject":
            check_known(request)

    def _timeout_s(self, asked_timeout_s: float | None) -> float:
        limit_s = self._config.limits.request_timeout_s
        return limit_s if asked_timeout_s is None else min(limit_s, asked_timeout_s)

    def _meta(
        self, metadata: dict[str, Any], request_id: str, timeout_s: float, asked_timeout_s: float | None
    ) -> RequestMeta:
        tenant = self._authenticator.tenant(presented_key(metadata.get("authorization"), metadata.get("x-api-key")))
        return request_meta(
            self._config.scheduler,
            metadata.get,
            tenant=tenant,
            request_id=request_id,
            timeout_s=timeout_s,
            asked_timeout_s=asked_timeout_s,
        )

    @contextlib.contextmanager
    def _observed(self, rpc: Rpc, context: Context) -> Iterator[list[str]]:
        """Count the call; the list receives the label of an error."""
        started_s = time.monotonic()
        seen: list[str] = []
        try:
            yield seen
        except asyncio.CancelledError:
            remaining_s = context.time_remaining()
            seen.append("client_gone" if remaining_s is None or remaining_s > 0 else "deadline_exceeded")
            raise
        finally:
            self._metrics.requests.labels("grpc", rpc.name, seen[0] if seen else "ok").inc()
            self._metrics.duration_s.labels("grpc", rpc.name).observe(time.monotonic() - started_s)


def _initial_metadata(meta: RequestMeta) -> tuple[tuple[str, str], ...]:
    return ((REQUEST_ID_KEY, meta.request_id), *meta.notices.items())


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _deserializer(cls: type[Message]) -> Callable[[bytes], Message | DecodeError]:
    """A parser that returns its error: one that raises makes grpc answer UNKNOWN."""

    def parse(data: bytes) -> Message | DecodeError:
        try:
            return cls.FromString(data)
        except DecodeError as error:
            return error

    return parse


def _known(error: Exception, request_id: str) -> ServeError:
    """The error as one of ours; what is not is logged and kept from the caller."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("The request ran longer than the server allows.")
    log.error("request %s failed", request_id, exc_info=error)
    return InternalError("The server failed to answer this request.")


def _bind(server: Any, config: ServeConfig) -> int:
    host = f"[{config.http.host}]" if ":" in config.http.host else config.http.host
    address = f"{host}:{config.grpc.port}"
    credentials = _credentials(config.tls)
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise RuntimeError(f"cannot listen on {address}; choose another port with --grpc-port") from error


def _credentials(tls: TlsConfig) -> "grpc.ServerCredentials | None":
    if tls.cert is None or tls.key is None:
        return None
    try:
        pair = (tls.key.read_bytes(), tls.cert.read_bytes())
        client_ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"tls: cannot read {error.filename}: {error.strerror}") from error
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
