"""The engine replica: Ray Serve places, checks and restarts it; it owns its engine and its listeners."""

import asyncio
import logging
import os
import threading
from importlib.metadata import version
from typing import Any

from prometheus_client import REGISTRY

from burrstone.serving.assemble import Engine, start_engine
from burrstone.serving.auth import Authenticator, check_bind
from burrstone.serving.config import ServeConfig
from burrstone.serving.edges.documents import documents
from burrstone.serving.edges.grpc_listener import GrpcListener
from burrstone.serving.edges.http_api import HttpApi
from burrstone.serving.edges.http_server import HttpListener, bind
from burrstone.serving.edges.lifecycle import Lifecycle
from burrstone.serving.metrics import ApiMetrics

log = logging.getLogger("burrstone.replica")
_BIND_RETRY_S = 0.2
_BIND_TIMEOUT_S = 30.0
# What ended requests get to send their error to their clients.
_LAST_WORDS_S = 5.0


class EngineReplica:
    """Listens from its first moment (503 while starting), then serves until drained."""

    async def __init__(self, config_json: str, authenticator: Authenticator) -> None:  # type: ignore[misc]
        config = ServeConfig.model_validate_json(config_json)
        _configure_logging(config)
        self._config = config
        self._lifecycle = Lifecycle()
        self._engine: Engine | None = None
        self._listeners: list[HttpListener | GrpcListener] = []
        self._drained = False
        metrics = ApiMetrics(REGISTRY)
        check_bind(config.http.host, authenticator)
        await self._listen(config, metrics, authenticator)
        try:
            self._engine = await start_engine(config, self._lifecycle, metrics, REGISTRY)
        except BaseException:
            await self._close_listeners()
            raise
        self._lifecycle.open(self._engine.api)
        metrics.ready.set_function(lambda: float(self._lifecycle.ready))

    async def _listen(self, config: ServeConfig, metrics: ApiMetrics, authenticator: Authenticator) -> None:
        app = HttpApi(
            config, self._lifecycle, authenticator, metrics, REGISTRY, documents(config), version("burrstone")
        )
        http = HttpListener(app.with_cors(), config)
        await http.start(await _bind_when_free(config.http.host, config.http.port))
        self._listeners.append(http)
        if config.grpc.enabled:
            grpc = GrpcListener(config, self._lifecycle, authenticator, metrics)
            await grpc.start()
            self._listeners.append(grpc)

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if self._engine is not None and self._engine.dead:
            self._lifecycle.fail("the engine died")
            raise RuntimeError("the engine died")

    async def state(self) -> dict[str, Any]:
        """What /ready says, and the process to look for."""
        return self._lifecycle.describe() | {"pid": os.getpid()}

    async def drain(self) -> bool:
        """Refuse new requests, let running ones finish for the grace period, then end them. True when all finished."""
        self._lifecycle.close()
        finished = await self._lifecycle.wait_idle(self._config.replica.drain_grace_s)
        if not finished and self._engine is not None:
            await self._engine.end_running()
            await self._lifecycle.wait_idle(_LAST_WORDS_S)
        await self._close_listeners()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
        self._drained = True
        return finished

    async def _close_listeners(self) -> None:
        for listener in reversed(self._listeners):
            await listener.stop()
        self._listeners.clear()

    async def __del__(self) -> None:
        if not self._drained:
            await self.drain()


async def _bind_when_free(host: str, port: int) -> Any:
    """Bind, waiting a little for a predecessor that is being replaced to let go of the port."""
    deadline_s = asyncio.get_running_loop().time() + _BIND_TIMEOUT_S
    while True:
        try:
            return bind(host, port)
        except OSError as error:
            if asyncio.get_running_loop().time() > deadline_s:
                raise RuntimeError(
                    f"cannot listen on {host}:{port} ({error.strerror}); choose another port with --http-port"
                ) from error
            await asyncio.sleep(_BIND_RETRY_S)


def _configure_logging(config: ServeConfig) -> None:
    logging.getLogger("burrstone").setLevel(config.observability.log_level.upper())
    threading.current_thread().name = "burrstone-replica"
