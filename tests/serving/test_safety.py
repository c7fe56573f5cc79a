"""Who may ask, what may be asked, and what is never told: keys, tenants, TLS, limits, logs, listening addresses."""

import http.client
import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, Pair
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from processes import Family, launched, wait_served
from rpcs import SERVICES
from waiting import generations_running

from burrstone.openai.v1 import (
    models_pb2,
    raw_pb2,
)
from burrstone.serving.auth import load_keys
from burrstone.serving.client import ApiError, Client
from burrstone.serving.config import AuthConfig, ConfigError
from burrstone.serving.edges.http_routes import PATHS
from harness import MODEL, SCRIPT

Json = dict[str, Any]
ALICE, BOB = f"alice-{uuid.uuid4().hex}", f"bob-{uuid.uuid4().hex}"
CANARY = f"canary{uuid.uuid4().hex}"
RPCS = [f"/{method.containing_service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
SCRIPTED = ["--engine.kind", "scripted", "--engine.script", str(SCRIPT)]
LIMITS = {
    "max-body-bytes": "20000",
    "max-n": "2",
    "max-logprobs": "3",
    "max-stop-sequences": "2",
    "max-tools": "2",
    "max-grammar-bytes": "1000",
    "max-grammar-depth": "6",
    "max-choices": "3",
    "max-prompts": "2",
    "max-header-bytes": "8000",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Two keys, one in a file and one in the environment; every limit small."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys"
    keys.write_text(f"# who: key\nalice:{ALICE}\n")
    flags = [*SCRIPTED, "--auth.keys-file", str(keys), "--http.body-timeout-s", "1", "--engine.max-model-len", "512"]
    for name, value in LIMITS.items():
        flags += [f"--limits.{name}", value]
    with launched(folder / "log", *flags, environ={"BURRSTONE_API_KEYS": f"bob:{BOB}"}) as server:
        wait_served(server)
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def chat(text: str = "Hi", **fields: Any) -> Json:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong" * 5), {"x-api-key": "wrong" * 5}, {"Authorization": f"Basic {ALICE}"}]
)
def test_every_route_but_health_asks_for_a_key(guarded: Family, headers: dict[str, str]) -> None:
    plain = [("GET", path) for path in ("/metrics", "/version", "/docs", "/openapi.json")]
    for method, path in [*sorted(PATHS), *plain]:
        body: Json | None = {} if method == "POST" else None
        path = path.replace("{id}", "resp_1").replace("{path}", MODEL)
        status, reply = guarded.request(method, path, body, headers)
        assert status == 401, (method, path)
        told = reply["error"]["type"] if path.startswith("/v1/messages") else reply["error"]["code"]
        assert told in ("invalid_api_key", "authentication_error")
    assert guarded.get("/health")[0] == 200
    assert guarded.get("/ready")[0] == 200


@pytest.mark.parametrize(
    "headers", [bearer(ALICE), bearer(BOB), {"x-api-key": ALICE}, {"authorization": f"bearer {BOB}"}]
)
def test_a_right_key_opens(guarded: Family, headers: dict[str, str]) -> None:
    assert guarded.request("GET", "/v1/models", headers=headers)[0] == 200
    with grpc.insecure_channel(guarded.grpc_address) as channel:
        metadata = [(name.lower(), value) for name, value in headers.items()]
        models = models_pb2.ListModelsResponse.FromString(invoke(channel, RPCS_BY_NAME["ListModels"], metadata))
        assert models.data


RPCS_BY_NAME = {path.rpartition("/")[2]: path for path in RPCS}


def invoke(channel: grpc.Channel, path: str, metadata: list[tuple[str, str]], request: bytes = b"") -> bytes:
    """The first frame of an RPC's answer."""
    rpc: Any = channel.unary_stream(path, lambda data: data, lambda data: data)
    frames: list[bytes] = list(rpc(request, timeout=30, metadata=metadata))
    return frames[0]


@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer wrongwrongwrongwrong")], [("x-api-key", "wrong")]])
def test_every_rpc_but_health_asks_for_a_key(guarded: Family, metadata: list[tuple[str, str]]) -> None:
    with grpc.insecure_channel(guarded.grpc_address) as channel:
        for path in RPCS:
            with pytest.raises(grpc.RpcError) as refused:
                invoke(channel, path, metadata)
            error = ApiError(refused.value)
            assert (error.status, error.code) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key"), path
        with pytest.raises(grpc.RpcError) as refused:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert ApiError(refused.value).status is grpc.StatusCode.UNAUTHENTICATED
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_stored_responses_are_their_tenants_own(guarded: Family) -> None:
    status, mine = guarded.request("POST", "/v1/responses", {"model": MODEL, "input": "Hi"}, bearer(ALICE))
    assert status == 200
    path = f"/v1/responses/{mine['id']}"
    for method, where in (("GET", path), ("GET", f"{path}/input_items"), ("POST", f"{path}/cancel"), ("DELETE", path)):
        status, reply = guarded.request(method, where, {} if method == "POST" else None, bearer(BOB))
        assert (status, reply["error"]["code"]) == (404, "response_not_found"), (method, where)
    follow_up = {"model": MODEL, "input": "And?", "previous_response_id": mine["id"]}
    assert guarded.request("POST", "/v1/responses", follow_up, bearer(BOB))[0] in (400, 404)
    with Client(guarded.grpc_address, api_key=BOB) as bob, pytest.raises(ApiError) as refused:
        bob.get_response(mine["id"])
    assert refused.value.status is grpc.StatusCode.NOT_FOUND
    assert guarded.request("GET", path, headers=bearer(ALICE))[0] == 200


def nested(depth: int) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(name: str, schema: Json | None = None) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": schema or {"type": "object"}}}


def json_schema(schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


LONG = "a" * 2000
WIDE = {"type": "object", "properties": {f"key{i}": {"type": "string"} for i in range(60)}}
BEYOND: list[tuple[str, Json, str]] = [
    ("/v1/chat/completions", chat("word " * 600), "messages"),
    ("/v1/completions", {"model": MODEL, "prompt": "word " * 600}, "prompt"),
    ("/v1/chat/completions", chat(n=3), "n"),
    ("/v1/completions", {"model": MODEL, "prompt": "x", "best_of": 3}, "best_of"),
    ("/v1/chat/completions", chat(logprobs=True, top_logprobs=4), "top_logprobs"),
    ("/v1/completions", {"model": MODEL, "prompt": "x", "logprobs": 4}, "logprobs"),
    ("/v1/chat/completions", chat(stop=["a", "b", "c"]), "stop"),
    ("/v1/chat/completions", chat(tools=[tool("a"), tool("b"), tool("c")]), "tools"),
    ("/v1/chat/completions", chat(response_format=json_schema(WIDE)), "response_format"),
    ("/v1/chat/completions", chat(response_format=json_schema(nested(4))), "response_format"),
    ("/v1/chat/completions", chat(tools=[tool("a", nested(4))]), "tools[0].function.parameters"),
    ("/v1/chat/completions", chat(structured_outputs={"regex": LONG}), "structured_outputs.regex"),
    ("/v1/chat/completions", chat(structured_outputs={"grammar": LONG}), "structured_outputs.grammar"),
    ("/v1/chat/completions", chat(structured_outputs={"choice": ["a", "b", "c", "d"]}), "structured_outputs.choice"),
    ("/v1/chat/completions", chat(structured_outputs={"json": WIDE}), "structured_outputs.json"),
    ("/v1/completions", {"model": MODEL, "prompt": ["a", "b", "c"]}, "prompt"),
]


@pytest.mark.parametrize(("path", "body", "param"), BEYOND, ids=[f"{i}-{case[2]}" for i, case in enumerate(BEYOND)])
def test_beyond_a_limit_is_refused_by_name(guarded: Family, path: str, body: Json, param: str) -> None:
    status, reply = guarded.request("POST", path, body, bearer(ALICE))
    assert (status, reply["error"]["param"]) == (400, param), reply
    # The raw door leads through the same limits.
    request = raw_pb2.InvokeRequest(path=path, body=json.dumps(body).encode())
    with grpc.insecure_channel(guarded.grpc_address) as channel, pytest.raises(grpc.RpcError) as refused:
        invoke(channel, RPCS_BY_NAME["Invoke"], [("x-api-key", ALICE)], request.SerializeToString())
    error = ApiError(refused.value)
    assert (error.status, error.param) == (grpc.StatusCode.INVALID_ARGUMENT, param)


def test_too_large_a_body_is_refused_on_both_wires(guarded: Family) -> None:
    status, reply = guarded.request("POST", "/v1/chat/completions", chat("x" * 30_000), bearer(ALICE))
    assert (status, reply["error"]["code"]) == (413, "request_too_large")
    with Client(guarded.grpc_address, api_key=ALICE) as client, pytest.raises(ApiError) as refused:
        client.chat(**chat("x" * 30_000))
    assert refused.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_too_large_a_body_without_a_length_is_refused_while_it_is_read(guarded: Family) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {ALICE}\r\n"
    head += "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guarded.http_port), timeout=30) as sock:
        sock.sendall(head.encode())
        # Never ended: the answer comes from what was read so far.
        sock.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        for _ in range(8):
            sock.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")


def test_too_large_headers_are_refused(guarded: Family) -> None:
    with socket.create_connection(("127.0.0.1", guarded.http_port), timeout=30) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 9000 + b"\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ", b""),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n", b""),
        (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {ALICE}\r\n".encode()
            + b"content-type: application/json\r\ncontent-length: 500\r\n\r\n{",
            b"HTTP/1.1 504",
        ),
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["first request", "kept-alive connection"])
def test_a_stalled_request_is_ended(guarded: Family, sent: bytes, answer: bytes, warm: bool) -> None:
    with socket.create_connection(("127.0.0.1", guarded.http_port), timeout=30) as sock:
        if warm:
            sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answered = b""
            while not answered.endswith(b'{"status":"ok"}'):
                answered += sock.recv(4096)
            assert answered.startswith(b"HTTP/1.1 200")
        sock.sendall(sent)
        assert until_closed(sock).startswith(answer)


def until_closed(sock: socket.socket) -> bytes:
    """What the server still says before it closes the connection."""
    said = b""
    while part := sock.recv(4096):
        said += part
    return said


def test_what_clients_send_is_never_written_down(guarded: Family) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": CANARY})}}
    messages = [
        {"role": "user", "content": CANARY},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": CANARY},
    ]
    ids = {"x-request-id": f"{CANARY}\u00ff", "user-agent": CANARY, "x-other": CANARY}
    bodies: list[Json] = [
        {"model": MODEL, "messages": messages, "tools": [tool("f")]},
        chat(CANARY, tools=[tool(CANARY, nested(4))]),
        chat(f"break in the middle {CANARY}"),
        chat(f"the queue is full {CANARY}"),
        chat(CANARY, **{CANARY: 1}),
        chat(CANARY) | {"model": CANARY},
        chat(CANARY, structured_outputs={"regex": f"({CANARY}"}),
        chat(CANARY, temperature=CANARY),
    ]
    statuses = []
    for body in bodies:
        statuses.append(guarded.request("POST", "/v1/chat/completions", body, bearer(ALICE) | ids)[0])
        request = raw_pb2.InvokeRequest(path="/v1/chat/completions", body=json.dumps(body).encode())
        with grpc.insecure_channel(guarded.grpc_address) as channel:
            metadata = [("x-api-key", BOB), ("x-request-id", f"{CANARY}!"), ("x-other", CANARY)]
            try:
                invoke(channel, RPCS_BY_NAME["Invoke"], metadata, request.SerializeToString())
            except grpc.RpcError:
                continue
    assert statuses == [200, 400, 500, 429, 400, 404, 400, 400]
    guarded.request("POST", f"/v1/{CANARY}", {}, bearer(ALICE))
    metrics = urllib.request.Request(f"{guarded.url}/metrics", headers=bearer(ALICE))
    with urllib.request.urlopen(metrics, timeout=30) as reply:
        told = reply.read().decode()
    assert 'tenant="alice"' in told
    assert CANARY not in told
    assert_unwritten(guarded, CANARY)


def test_keys_are_never_written_down(guarded: Family) -> None:
    for key in (ALICE, BOB):
        guarded.request("GET", "/v1/models", headers=bearer(key))
        guarded.request("GET", "/v1/models", headers=bearer(key + "x"))
        assert_unwritten(guarded, key)
        assert all(key not in process.title for process in guarded.processes())


def test_rays_token_is_never_written_down(guarded: Family) -> None:
    [replica] = guarded.find("ServeReplica")
    environ = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{replica}/environ").read_text().split("\0") if "=" in entry
    )
    token = environ["RAY_AUTH_TOKEN"]
    assert environ["RAY_AUTH_MODE"] == "token"
    assert_unwritten(guarded, token)
    assert all(token not in process.title for process in guarded.processes())


def assert_unwritten(server: Family, secret: str) -> None:
    """Neither in the command's output nor anywhere in Ray's logs of this run."""
    assert secret not in server.output()
    files = [path for path in server.ray_logs().rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_nothing_listens_beyond_loopback_but_what_asks_for_rays_token(guarded: Family) -> None:
    listeners = guarded.listeners()
    assert {guarded.http_port, guarded.grpc_port} <= {port for _, _, port in listeners}
    beyond = [
        (title, port) for title, address, port in listeners if not address.startswith("127.") and address != "::1"
    ]
    # Serve gives each replica a port on every address for calls between deployments, and no option to change that.
    assert [title for title, _ in beyond] == ["ray::ServeReplica:burrstone:engine"]
    with grpc.insecure_channel(f"127.0.0.1:{beyond[0][1]}") as channel, pytest.raises(grpc.RpcError) as refused:
        invoke(channel, "/ray.serve.ASGIService/HandleRequest", [])
    assert ApiError(refused.value).status is grpc.StatusCode.UNAUTHENTICATED


def test_the_engine_is_idle_after_all_that(guarded: Family) -> None:
    assert generations_running(guarded, bearer(ALICE)) == 0


def test_a_wider_bind_without_a_key_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "burrstone.serving.cli.main", "serve", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "http.host" in done.stderr and "no API key" in done.stderr and "auth.keys_file" in done.stderr


def test_a_short_key_is_refused_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 16 characters") as refused:
        load_keys(AuthConfig(), {"BURRSTONE_API_KEYS": "name:tooshort"})
    assert "tooshort" not in str(refused.value)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Family, Authority, Pair]]:
    """TLS on both listeners, for clients with a certificate of our authority only."""
    folder = tmp_path_factory.mktemp("mutual")
    authority = Authority(folder)
    server, client = authority.issue("server"), authority.issue("client")
    tls = ["--tls.cert", str(server.certificate), "--tls.key", str(server.key)]
    tls += ["--tls.client-ca", str(authority.certificate)]
    with launched(folder / "log", *SCRIPTED, *tls) as running:
        wait_served(running)
        yield running, authority, client


def test_mutual_tls_serves_who_has_a_certificate(mutual: tuple[Family, Authority, Pair]) -> None:
    server, authority, client = mutual
    assert over_https(server, authority.context(client)) == 200
    with over_tls(server, authority, client) as calling:
        assert [model.id for model in calling.list_models().data] == [MODEL, "default"]


def test_mutual_tls_refuses_who_has_none(mutual: tuple[Family, Authority, Pair], tmp_path: Path) -> None:
    server, authority, _ = mutual
    stranger = Authority(tmp_path, "another CA").issue("client")
    for context in (authority.context(), authority.context(stranger)):
        with pytest.raises((OSError, http.client.HTTPException)):
            over_https(server, context)
    for pair in (None, stranger):
        with over_tls(server, authority, pair) as calling, pytest.raises(ApiError) as refused:
            calling.list_models(timeout_s=10.0)
        assert refused.value.status is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_refuses_plain_text(mutual: tuple[Family, Authority, Pair]) -> None:
    server, _, _ = mutual
    with pytest.raises((OSError, http.client.HTTPException)):
        server.get("/health")
    with Client(server.grpc_address) as calling, pytest.raises(ApiError) as refused:
        calling.list_models(timeout_s=10.0)
    assert refused.value.status is grpc.StatusCode.UNAVAILABLE


def over_https(server: Family, context: ssl.SSLContext) -> int:
    url = f"https://127.0.0.1:{server.http_port}/v1/models"
    with urllib.request.urlopen(url, timeout=30, context=context) as reply:
        return int(reply.status)


def over_tls(server: Family, authority: Authority, client: Pair | None) -> Client:
    read: Callable[[Path], bytes] = Path.read_bytes
    return Client(
        server.grpc_address,
        root_certificates=read(authority.certificate),
        client_key=None if client is None else read(client.key),
        client_certificate=None if client is None else read(client.certificate),
    )
