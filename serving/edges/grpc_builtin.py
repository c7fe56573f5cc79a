"""The services that every gRPC server has: health, open to all, and reflection, which asks for a key where one is configured."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from burrstone.batching.errors import NotFound, Overloaded, ServeError
from burrstone.serving.auth import Authenticator, presented_key
from burrstone.serving.edges.grpc_errors import fail
from burrstone.serving.edges.lifecycle import Lifecycle

Context = Any  # grpc.aio.ServicerContext, whose stubs lack the methods used here
HEALTH_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_WATCH_POLL_S = 0.5
_MAX_WATCHES = 64


def add_health(server: Any, lifecycle: Lifecycle, services: Sequence[str], max_concurrent_rpcs: int) -> None:
    """grpc.health.v1 for these services and, under the empty name, for the whole server."""
    # Watches need no key and never end: they must not take the places of other calls.
    max_watches = max(1, min(_MAX_WATCHES, max_concurrent_rpcs // 2))
    health_pb2_grpc.add_HealthServicer_to_server(_Health(lifecycle, frozenset(services), max_watches), server)


def add_reflection(server: Any, authenticator: Authenticator, services: Sequence[str]) -> None:
    """Server reflection over these services and itself."""
    servicer = _Reflection([*services, reflection.SERVICE_NAME])
    servicer.authenticator = authenticator
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def __init__(self, lifecycle: Lifecycle, services: frozenset[str], max_watches: int) -> None:
        self._lifecycle = lifecycle
        self._services = services | {""}
        self._max_watches = max_watches
        self._num_watches = 0

    async def Check(self, request: Any, context: Context) -> Any:
        if request.service not in self._services:
            fail(context, NotFound(f"There is no service {request.service[:128]!r}."), "")
            return None
        return _reply(self._status(request.service))

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """The status now and whenever it changes; an unknown service is watched too, as the protocol asks."""
        if self._num_watches >= self._max_watches:
            fail(context, Overloaded("Too many watches are open; poll Check instead.", retry_after_s=5.0), "")
            return
        self._num_watches += 1
        try:
            async for status in self._changes(request.service):
                yield _reply(status)
        finally:
            self._num_watches -= 1

    async def _changes(self, service: str) -> AsyncIterator[int]:
        last: int | None = None
        while True:
            status = self._status(service)
            if status != last:
                last = status
                yield status
            await asyncio.sleep(_WATCH_POLL_S)

    def _status(self, service: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if service not in self._services:
            return int(statuses.SERVICE_UNKNOWN)
        return int(statuses.SERVING if self._lifecycle.ready else statuses.NOT_SERVING)


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    authenticator: Authenticator

    async def ServerReflectionInfo(self, request_iterator: AsyncIterable[Any], context: Context) -> AsyncIterator[Any]:
        metadata = dict(context.invocation_metadata() or ())
        try:
            self.authenticator.tenant(presented_key(metadata.get("authorization"), metadata.get("x-api-key")))
        except ServeError as error:
            fail(context, error, "")
            return
        async for reply in super().ServerReflectionInfo(request_iterator, context):
            yield reply


def _reply(status: int) -> Any:
    return health_pb2.HealthCheckResponse(status=status)
