"""The HTTP edge: an allow-list of routes, authentication, one envelope for every error, SSE as OpenAI's SDKs read it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from burrstone.batching.errors import (
    ClientGone,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    ServeError,
)
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.types import Api, JsonObject
from burrstone.serving.auth import Authenticator, presented_key
from burrstone.serving.config import ServeConfig
from burrstone.serving.edges.http_body import headers_of, read_json
from burrstone.serving.edges.http_reply import Reply, send_error, send_json, send_plain, send_stream
from burrstone.serving.edges.http_routes import Match, Operation, RouteTable
from burrstone.serving.edges.ids import request_id_from
from burrstone.serving.edges.lifecycle import Lifecycle
from burrstone.serving.edges.metadata import request_meta
from burrstone.serving.metrics import ApiMetrics

log = logging.getLogger("burrstone.http")


class HttpApi:
    """ASGI application. `documents` are served as they are: path -> (content type, body)."""

    def __init__(
        self,
        config: ServeConfig,
        lifecycle: Lifecycle,
        authenticator: Authenticator,
        metrics: ApiMetrics,
        registry: CollectorRegistry,
        documents: Mapping[str, tuple[str, bytes]],
        version: str,
    ) -> None:
        self._config = config
        self._lifecycle = lifecycle
        self._authenticator = authenticator
        self._metrics = metrics
        self._registry = registry
        self._documents = documents
        self._version = version
        self._routes = RouteTable()
        # Beyond the engine's own bound, so that its refusal is the one most callers see.
        self._max_requests = 4 * config.limits.max_queued_requests
        self._num_requests = 0

    def with_cors(self) -> ASGIApp:
        """This app; behind CORS when origins are configured."""
        origins = self._config.http.cors_origins
        if not origins:
            return self
        return CORSMiddleware(
            self, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = headers_of(scope)
        reply = Reply(send, request_id_from(headers.get(b"x-request-id", b"").decode("latin-1")))
        operation, outcome = "unknown", "ok"
        try:
            if self._is_plain(scope["path"]):
                operation = scope["path"].strip("/")
                await self._answer_plain(scope, headers, reply)
                return
            match = self._match(scope)
            operation = match.operation.name
            reply.anthropic = match.operation.anthropic
            tenant = self._authenticate(headers)
            with self._counted():
                await self._answer(match, scope, headers, tenant, receive, reply)
        except ClientGone:
            outcome = "client_gone"
        except ServeError as error:
            outcome = await send_error(reply, error)
        except asyncio.CancelledError:
            outcome = "client_gone"
            raise
        except Exception:
            log.exception("request %s failed", reply.request_id)
            outcome = await send_error(reply, InternalError("The server failed to answer this request."))
        finally:
            self._metrics.requests.labels("http", operation, outcome).inc()
            self._metrics.duration_s.labels("http", operation).observe(time.monotonic() - reply.started_s)

    def _is_plain(self, path: str) -> bool:
        """Whether the route needs no engine."""
        return path in ("/health", "/ready", "/metrics", "/version") or path in self._documents

    async def _answer_plain(self, scope: Scope, headers: dict[bytes, bytes], reply: Reply) -> None:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{path} answers GET only.")
        if not (path in ("/health", "/ready") or (path == "/metrics" and self._config.observability.metrics_public)):
            self._authenticate(headers)
        if path == "/health":
            await send_json(reply, {"status": "ok"})
        elif path == "/ready":
            state = self._lifecycle.describe()
            await send_json(reply, state, status=200 if self._lifecycle.ready else 503)
        elif path == "/version":
            await send_json(reply, {"version": self._version})
        elif path == "/metrics":
            await send_plain(reply, "text/plain; version=0.0.4; charset=utf-8", generate_latest(self._registry))
        else:
            await send_plain(reply, *self._documents[path])

    def _match(self, scope: Scope) -> Match:
        found = self._routes.match(scope["path"])
        if not found:
            raise NotFound(f"There is no route {scope['path'][:128]!r}; see /docs.", code="unknown_url")
        match = found.get(scope["method"])
        if match is None:
            allowed = ", ".join(sorted(found))
            raise MethodNotAllowed(f"{scope['method']} is not allowed here; allowed: {allowed}.")
        return match

    def _authenticate(self, headers: dict[bytes, bytes]) -> str:
        authorization, key = headers.get(b"authorization"), headers.get(b"x-api-key")
        return self._authenticator.tenant(
            presented_key(
                None if authorization is None else authorization.decode("latin-1"),
                None if key is None else key.decode("latin-1"),
            )
        )

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Hold a place among the requests in flight. Raises Overloaded when none is left."""
        if self._num_requests >= self._max_requests:
            raise Overloaded(
                f"{self._max_requests} requests are in flight already; try again shortly.", retry_after_s=1.0
            )
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    async def _answer(
        self, match: Match, scope: Scope, headers: dict[bytes, bytes], tenant: str, receive: Receive, reply: Reply
    ) -> None:
        operation = match.operation
        body = await read_json(scope, receive, self._config.limits, self._config.http) if operation.has_body else {}
        api = self._lifecycle.api()
        meta = request_meta(
            self._config.scheduler,
            lambda name: headers.get(name.encode(), b"").decode("latin-1"),
            tenant=tenant,
            request_id=reply.request_id,
            timeout_s=self._config.limits.request_timeout_s,
        )
        reply.notices = meta.notices
        work = asyncio.ensure_future(self._run(operation, api, body, meta, match, scope, reply))
        watch = asyncio.ensure_future(_disconnected(receive))
        with self._lifecycle.track():
            try:
                await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    # Nobody reads on: cancelling the work aborts its generation in the engine.
                    work.cancel()
                    await asyncio.wait((work,))
                    raise ClientGone("The client closed the connection.")
                await work
            finally:
                watch.cancel()
                if not work.done():
                    work.cancel()

    async def _run(
        self,
        operation: Operation,
        api: Api,
        body: JsonObject,
        meta: RequestMeta,
        match: Match,
        scope: Scope,
        reply: Reply,
    ) -> None:
        result = await operation.run(api, body, meta, match.path_value, scope["query_string"])
        if isinstance(result, dict):
            await send_json(reply, result)
        else:
            await send_stream(reply, result, done_marker=operation.done_marker)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
