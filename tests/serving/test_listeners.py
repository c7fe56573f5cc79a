"""Both listeners by themselves, in this process: TLS, health as the lifecycle goes on, and the bound on concurrent calls."""

import asyncio
import contextlib
import json
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from burrstone.batching.request import RequestMeta
from burrstone.openai.v1 import models_pb2, models_pb2_grpc
from burrstone.serving.auth import Authenticator
from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.edges import http_server
from burrstone.serving.edges.grpc_listener import GrpcListener
from burrstone.serving.edges.http_api import HttpApi
from burrstone.serving.edges.http_server import HttpListener, bind
from burrstone.serving.edges.lifecycle import Lifecycle
from burrstone.serving.metrics import ApiMetrics

Listen = Callable[..., Any]
statuses = health_pb2.HealthCheckResponse


class SlowApi:
    """Answers `models` when told to; nothing else is asked of it."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[RequestMeta] = asyncio.Queue()
        self.go = asyncio.Event()

    async def models(self, meta: RequestMeta) -> dict[str, Any]:
        self.arrived.put_nowait(meta)
        meta.notices["x-told"] = "7"
        await self.go.wait()
        return {"object": "list", "data": []}


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """listen(lifecycle, **grpc and tls settings): a gRPC listener's port and an HTTP listener's port."""
    started: list[GrpcListener | HttpListener] = []

    async def start(lifecycle: Lifecycle, **settings: Any) -> tuple[int, int]:
        config = ServeConfig.model_validate({"grpc": {"port": 0, **settings.pop("grpc", {})}, **settings})
        registry, anyone = CollectorRegistry(), Authenticator(())
        metrics = ApiMetrics(registry)
        listener = GrpcListener(config, lifecycle, anyone, metrics)
        await listener.start()
        started.append(listener)
        http = HttpListener(HttpApi(config, lifecycle, anyone, metrics, registry, {}, "0"), config)
        sock = bind("127.0.0.1", 0)
        http_port: int = sock.getsockname()[1]
        await http.start(sock)
        started.append(http)
        return listener.port, http_port

    yield start
    for listener in started:
        await listener.stop()


def model_stub(channel: grpc.aio.Channel) -> Any:
    make: Callable[..., Any] = models_pb2_grpc.ModelServiceStub
    return make(channel)


async def test_calls_beyond_the_bound_are_refused(listen: Listen) -> None:
    lifecycle, api = Lifecycle(), SlowApi()
    lifecycle.open(api)  # type: ignore[arg-type]
    port, _ = await listen(lifecycle, grpc={"max_concurrent_rpcs": 2})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = model_stub(channel)
        held = [asyncio.ensure_future(stub.ListModels(models_pb2.ListModelsRequest())) for _ in range(2)]
        for _ in held:
            await api.arrived.get()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListModels(models_pb2.ListModelsRequest())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        api.go.set()
        await asyncio.gather(*held)
        await stub.ListModels(models_pb2.ListModelsRequest())


async def metas_of(listen: Listen, headers: dict[str, str], **settings: Any) -> list[RequestMeta]:
    """What the API is told of a request with these headers, over gRPC and over HTTP; both carry the API's notice back."""
    lifecycle, api = Lifecycle(), SlowApi()
    lifecycle.open(api)  # type: ignore[arg-type]
    api.go.set()
    grpc_port, http_port = await listen(lifecycle, **settings)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        call = model_stub(channel).ListModels(models_pb2.ListModelsRequest(), metadata=tuple(headers.items()))
        await call
        assert ("x-told", "7") in tuple(await call.initial_metadata())
    request = urllib.request.Request(f"http://127.0.0.1:{http_port}/v1/models", headers=headers)
    with await asyncio.to_thread(urllib.request.urlopen, request, timeout=30) as reply:
        assert reply.headers["x-told"] == "7"
    return [await api.arrived.get() for _ in range(2)]


@pytest.mark.parametrize(
    ("headers", "session_id", "program_id"),
    [
        ({"x-session-id": "turn-7"}, "default/turn-7", "default/turn-7"),
        ({"x-session-id": "a b"}, None, None),
        ({"x-session-id": "x" * 65}, None, None),
        ({"x-program-id": "job"}, None, "default/job"),
        ({"x-session-id": "s", "x-program-id": "job"}, "default/s", "default/job"),
        ({"x-session-id": "s", "x-program-id": "other/job"}, "default/s", "default/s"),
    ],
)
async def test_sessions_and_programs_are_the_tenants_own(
    listen: Listen, headers: dict[str, str], session_id: str | None, program_id: str | None
) -> None:
    for meta in await metas_of(listen, headers):
        assert (meta.session_id, meta.program_id) == (session_id, program_id)


async def test_a_tenants_terms_come_from_the_configuration_alone(listen: Listen) -> None:
    terms = {"weight": 2.5, "priority": 4, "ttft_s": 0.5, "tpot_s": 0.05}
    asked = {"priority": "-9", "x-priority": "-9", "x-tenant": "root", "weight": "99", "x-request-weight": "99"}
    for meta in await metas_of(listen, asked, scheduler={"tenants": {"default": terms}, "default": {"weight": 9}}):
        assert (meta.tenant, meta.weight, meta.priority, meta.ttft_s, meta.tpot_s) == ("default", 2.5, 4, 0.5, 0.05)


async def test_watches_leave_room_for_other_calls(listen: Listen) -> None:
    lifecycle, api = Lifecycle(), SlowApi()
    lifecycle.open(api)  # type: ignore[arg-type]
    api.go.set()
    port, _ = await listen(lifecycle, grpc={"max_concurrent_rpcs": 8})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        held = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(4)]
        for watch in held:
            assert (await watch.read()).status == statuses.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Watch(health_pb2.HealthCheckRequest()).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == statuses.SERVING
        await model_stub(channel).ListModels(models_pb2.ListModelsRequest())
        for watch in held:
            watch.cancel()
        while True:  # the server hears of the cancelled ones a moment later
            watch = health.Watch(health_pb2.HealthCheckRequest())
            with contextlib.suppress(grpc.aio.AioRpcError):
                assert (await watch.read()).status == statuses.SERVING
                break
        watch.cancel()


async def test_idle_connections_take_no_place_and_requests_do(listen: Listen) -> None:
    lifecycle, api = Lifecycle(), SlowApi()
    lifecycle.open(api)  # type: ignore[arg-type]
    _, port = await listen(lifecycle, limits={"max_queued_requests": 2})
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
    assert (await get(port, "/health"))[0] == 200
    held = [asyncio.ensure_future(get(port, "/v1/models")) for _ in range(8)]
    for _ in held:
        await api.arrived.get()
    status, reply = await get(port, "/v1/models")
    assert (status, reply["error"]["type"]) == (429, "rate_limit_error")
    assert [(await get(port, path))[0] for path in ("/health", "/ready")] == [200, 200]
    api.go.set()
    assert {status for status, _ in await asyncio.gather(*held)} == {200}
    assert (await get(port, "/v1/models"))[0] == 200
    for _, writer in idle:
        writer.close()


async def test_connections_beyond_the_bound_are_closed(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 2)
    _, port = await listen(Lifecycle())
    open_ones = [await answered(port) for _ in range(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    for _, kept in open_ones:
        kept.close()


async def answered(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that stays open and whose first request was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n")
    assert b" 200 " in await reader.readline()
    return reader, writer


async def get(port: int, path: str) -> tuple[int, Any]:
    """Status and JSON body of one GET on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %b HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n" % path.encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def test_health_follows_the_lifecycle(listen: Listen) -> None:
    lifecycle = Lifecycle()
    port, _ = await listen(lifecycle)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == statuses.NOT_SERVING
        lifecycle.open(SlowApi())  # type: ignore[arg-type]
        assert (await watch.read()).status == statuses.SERVING
        lifecycle.close()
        assert (await watch.read()).status == statuses.NOT_SERVING
        watch.cancel()


async def test_calls_are_refused_with_a_hint_unless_ready(listen: Listen) -> None:
    lifecycle = Lifecycle()
    port, _ = await listen(lifecycle)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = model_stub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListModels(models_pb2.ListModelsRequest())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "grpc-status-details-bin" in dict(refused.value.trailing_metadata())


async def test_tls_without_a_client_ca(listen: Listen, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.issue("server")
    tls = {"cert": str(server.certificate), "key": str(server.key)}
    port, http_port = await listen(Lifecycle(), tls=tls)

    def health(context: ssl.SSLContext | None, scheme: str = "https") -> int:
        with urllib.request.urlopen(f"{scheme}://127.0.0.1:{http_port}/health", timeout=30, context=context) as reply:
            return int(reply.status)

    assert await asyncio.to_thread(health, authority.context()) == 200
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(health, ssl.create_default_context())
    with pytest.raises(OSError):
        await asyncio.to_thread(health, None, "http")
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert reply.status == statuses.NOT_SERVING
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)


async def test_a_certificate_that_cannot_be_read_is_named(listen: Listen, tmp_path: Path) -> None:
    tls = {"cert": str(tmp_path / "absent.pem"), "key": str(tmp_path / "absent.key")}
    with pytest.raises(ConfigError, match=r"tls: cannot read .*absent\.key"):
        await listen(Lifecycle(), tls=tls)
