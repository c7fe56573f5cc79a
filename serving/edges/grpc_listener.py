"""The replica's own gRPC listener: authentication, deadlines, cancellation, health and reflection over the RPC table."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from burrstone.batching.errors import InternalError, NotFound, ServeError
from burrstone.batching.request import RequestMeta
from burrstone.serving.auth import Authenticator, presented_key
from burrstone.serving.config import ConfigError, ServeConfig, TlsConfig
from burrstone.serving.edges.grpc_errors import DETAILS_KEY, status_details
from burrstone.serving.edges.grpc_rpcs import PACKAGE, Rpc, rpcs
from burrstone.serving.edges.ids import request_id_from
from burrstone.serving.edges.lifecycle import Lifecycle
from burrstone.serving.metrics import ApiMetrics
from burrstone.serving.status import wire_status

log = logging.getLogger("burrstone.grpc")
Context = Any  # grpc.aio.ServicerContext, whose stubs lack the methods used here
_MAX_SEND_BYTES = 64 * 2**20
_WATCH_POLL_S = 0.5
_MIN_PING_INTERVAL_MS = 10_000


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
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
            ],
        )
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for rpc in rpcs(self._config.limits):
            services.setdefault(f"{PACKAGE}.{rpc.service}", {})[rpc.name] = self._handler(rpc)
        for name, methods in services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        health_pb2_grpc.add_HealthServicer_to_server(_Health(self._lifecycle, set(services)), server)
        if self._config.grpc.reflection:
            names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        self.port = _bind(server, self._config)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Close the listener and what is left of its calls."""
        if self._server is not None:
            await self._server.stop(grace=0)

    def _handler(self, rpc: Rpc) -> "grpc.RpcMethodHandler[Any, Any]":
        serialize = _serialize
        if rpc.unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(rpc), request_deserializer=rpc.request.FromString, response_serializer=serialize
            )
        return grpc.unary_stream_rpc_method_handler(
            self._streaming(rpc), request_deserializer=rpc.request.FromString, response_serializer=serialize
        )

    def _unary(self, rpc: Rpc) -> Any:
        async def serve(request: Message, context: Context) -> Message | None:
            with self._lifecycle.track(), self._observed(rpc) as seen:
                request_id = _request_id(context)
                try:
                    await context.send_initial_metadata((("x-request-id", request_id),))
                    meta = self._meta(context, request_id)
                    reply = await rpc.unary(self._lifecycle.api(), request, meta)  # type: ignore[misc]
                except Exception as error:  # noqa: BLE001  the edge answers every failure
                    seen.append(await _abort(context, error, request_id))
                    return None
                return reply

        return serve

    def _streaming(self, rpc: Rpc) -> Any:
        async def serve(request: Message, context: Context) -> AsyncIterator[Message]:
            with self._lifecycle.track(), self._observed(rpc) as seen:
                request_id = _request_id(context)
                try:
                    await context.send_initial_metadata((("x-request-id", request_id),))
                    meta = self._meta(context, request_id)
                    stream = rpc.streaming(self._lifecycle.api(), request, meta)  # type: ignore[misc]
                    async with contextlib.aclosing(stream):
                        async for message in stream:
                            yield message
                except Exception as error:  # noqa: BLE001  the edge answers every failure
                    seen.append(await _abort(context, error, request_id))

        return serve

    def _meta(self, context: Context, request_id: str) -> RequestMeta:
        metadata = dict(context.invocation_metadata() or ())
        tenant = self._authenticator.tenant(presented_key(metadata.get("authorization"), metadata.get("x-api-key")))
        limit_s = self._config.limits.request_timeout_s
        remaining_s = context.time_remaining()
        timeout_s = limit_s if remaining_s is None else min(limit_s, remaining_s)
        return RequestMeta(request_id=request_id, tenant=tenant, deadline_s=time.monotonic() + timeout_s)

    @contextlib.contextmanager
    def _observed(self, rpc: Rpc) -> Iterator[list[str]]:
        """Count the call; the list receives the label of an error."""
        started_s = time.monotonic()
        seen: list[str] = []
        try:
            yield seen
        except (asyncio.CancelledError, GeneratorExit):
            seen.append("client_gone")
            raise
        finally:
            self._metrics.requests.labels("grpc", rpc.name, seen[0] if seen else "ok").inc()
            self._metrics.duration_s.labels("grpc", rpc.name).observe(time.monotonic() - started_s)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 from the lifecycle; the empty name is the whole server."""

    def __init__(self, lifecycle: Lifecycle, services: set[str]) -> None:
        self._lifecycle = lifecycle
        self._services = services | {""}

    async def Check(self, request: Any, context: Context) -> Any:
        if request.service not in self._services:
            await _abort(context, NotFound(f"There is no service {request.service[:128]!r}."), "")
        return self._reply()

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        if request.service not in self._services:
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            return
        last: bool | None = None
        while True:
            if self._lifecycle.ready is not last:
                last = self._lifecycle.ready
                yield self._reply()
            await asyncio.sleep(_WATCH_POLL_S)

    def _reply(self) -> Any:
        statuses = health_pb2.HealthCheckResponse
        return statuses(status=statuses.SERVING if self._lifecycle.ready else statuses.NOT_SERVING)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _request_id(context: Context) -> str:
    return request_id_from(dict(context.invocation_metadata() or ()).get("x-request-id"))


async def _abort(context: Context, error: Exception, request_id: str) -> str:
    """End the call with the error's status. Raises grpc's AbortError; the label is for the metrics of the caller."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, ServeError):
        log.error("request %s failed", request_id, exc_info=error)
        error = InternalError("The server failed to answer this request.")
    status = wire_status(error)
    context.set_trailing_metadata(((DETAILS_KEY, status_details(error, request_id)), ("x-request-id", request_id)))
    context.set_code(status.grpc)
    context.set_details(error.message[:1024])
    return status.label


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
