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
# What ended requests get to send their error to their clients.
_LAST_WORDS_S = 5.0
# A predecessor holds its ports for its grace period, the last words, and the end of its engine and process.
_BIND_MARGIN_S = _LAST_WORDS_S + 25.0
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class EngineReplica:
    """Listens from its first moment (503 while starting), then serves until drained."""

    async def __init__(  # type: ignore[misc]
        self, config_json: str, authenticator: Authenticator, judged_stamp: str | None = None
    ) -> None:
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
            self._engine = await start_engine(config, self._lifecycle, metrics, REGISTRY, judged_stamp)
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
        bind_timeout_s = config.replica.drain_grace_s + _BIND_MARGIN_S
        await http.start(await _bind_when_free(config.http.host, config.http.port, bind_timeout_s))
        self._listeners.append(http)
        if config.grpc.enabled:
            grpc = GrpcListener(config, self._lifecycle, authenticator, metrics)
            await grpc.start()
            self._listeners.append(grpc)

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if self._engine_dead():
            self._lifecycle.fail("the engine died")
            raise RuntimeError("the engine died")

    async def state(self) -> dict[str, Any]:
        """What /ready says, and the process to look for."""
        return self._lifecycle.describe() | {"pid": os.getpid()}

    async def drain(self) -> bool:
        """Refuse new requests, let running ones finish for the grace period, then end them. True when all finished.

        With a dead engine there is nothing to wait for, and a replacement that needs the ports.
        """
        self._lifecycle.close()
        finished = await self._lifecycle.wait_idle(self._config.replica.drain_grace_s, hopeless=self._engine_dead)
        if not finished and self._engine is not None:
            await self._engine.end_running()
            await self._lifecycle.wait_idle(_LAST_WORDS_S)
        await self._close_listeners()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
        self._drained = True
        return finished

    def _engine_dead(self) -> bool:
        return self._engine is not None and self._engine.dead

    async def _close_listeners(self) -> None:
        for listener in reversed(self._listeners):
            await listener.stop()
        self._listeners.clear()

    async def __del__(self) -> None:
        if not self._drained:
            await self.drain()


async def _bind_when_free(host: str, port: int, timeout_s: float) -> Any:
    """Bind, waiting for a predecessor that is being replaced to let go of the port."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
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
    logger = logging.getLogger("burrstone")
    logger.setLevel(config.observability.log_level.upper())
    if not logger.handlers:
        # Ray writes a worker's stderr to its log file, and configures no logger but its own.
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_LOG_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False
    threading.current_thread().name = "burrstone-replica"
