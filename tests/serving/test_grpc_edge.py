"""The gRPC edge on the scripted engine: every RPC, reflection as grpcurl uses it, health, errors, deadlines, limits."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from rpcs import SERVICES
from waiting import generations_running, wait_until

from burrstone.openai.v1 import (
    chat_pb2,
    models_pb2,
    raw_pb2,
)
from burrstone.serving.client import ApiError, AsyncClient, Client
from burrstone.serving.edges.proto_convert import from_json, to_json
from harness import MODEL, Server

Json = dict[str, Any]
README = Path(__file__).parents[2] / "README.md"
PACKAGE = "burrstone.openai.v1"
HELLO = "say exactly: hello world"
ANSWER = "Hello world, this is a script."
DEADLINE_S = 30.0


def chat(text: str = HELLO, **fields: Any) -> Json:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture(scope="module")
def channel(scripted: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(scripted.grpc_address) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(scripted: Server) -> Iterator[Client]:
    with Client(scripted.grpc_address) as opened:
        yield opened


def call(channel: grpc.Channel, method: str, request: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
    """The frames of an RPC, undecoded, and the finished call."""
    rpc: Any = channel.unary_stream(f"/{PACKAGE}.{method}", _same_bytes, _same_bytes)
    answered = rpc(request, timeout=DEADLINE_S, metadata=metadata)
    return list(answered), answered


def failure(channel: grpc.Channel, method: str, request: bytes) -> Any:
    with pytest.raises(grpc.RpcError) as failed:
        call(channel, method, request)
    return failed.value


def _same_bytes(data: bytes) -> bytes:
    return data


def test_every_operation_of_the_client_answers(client: Client) -> None:
    assert client.chat(**chat()).choices[0].message.content == ANSWER
    deltas = client.stream_chat(**chat())
    assert "".join(chunk.choices[0].delta.content for chunk in deltas if chunk.choices) == ANSWER
    prompt: Json = {"model": MODEL, "prompt": HELLO}
    assert client.complete(**prompt).choices[0].text == ANSWER
    assert "".join(c.choices[0].text for c in client.stream_complete(**prompt) if c.choices) == ANSWER
    response = client.respond(model=MODEL, input=HELLO).response
    assert to_json(response)["output"][0]["content"][0]["text"] == ANSWER
    events = [to_json(event) for event in client.stream_respond(model=MODEL, input=HELLO)]
    assert events[-1]["type"] == "response.completed"
    assert client.get_response(response.id).response.id == response.id
    assert to_json(client.list_input_items(response.id))["data"][0]["role"] == "user"
    assert client.delete_response(response.id).deleted
    assert [model.id for model in client.list_models().data] == [MODEL, "default"]
    assert client.get_model(MODEL).model.id == MODEL
    tokens = client.tokenize(model=MODEL, prompt=ANSWER).tokens
    assert client.detokenize(model=MODEL, tokens=list(tokens)).prompt == ANSWER
    assert [reply["choices"][0]["message"]["content"] for reply in client.invoke("/v1/chat/completions", chat())] == [
        ANSWER
    ]
    with pytest.raises(ApiError) as refused:
        client.embed(model=MODEL, input="x")
    assert refused.value.status is grpc.StatusCode.UNIMPLEMENTED


async def test_every_operation_of_the_async_client_answers(scripted: Server) -> None:
    async with AsyncClient(scripted.grpc_address) as client:
        assert (await client.chat(**chat())).choices[0].message.content == ANSWER
        deltas = [chunk.choices[0].delta.content async for chunk in client.stream_chat(**chat()) if chunk.choices]
        assert "".join(deltas) == ANSWER
        prompt: Json = {"model": MODEL, "prompt": HELLO}
        assert (await client.complete(**prompt)).choices[0].text == ANSWER
        texts = [chunk.choices[0].text async for chunk in client.stream_complete(**prompt) if chunk.choices]
        assert "".join(texts) == ANSWER
        response = (await client.respond(model=MODEL, input=HELLO, background=True)).response
        assert (await client.cancel_response(response.id)).response.id == response.id
        events = [to_json(event) async for event in client.stream_respond(model=MODEL, input=HELLO)]
        assert events[-1]["type"] == "response.completed"
        assert (await client.get_response(response.id)).response.id == response.id
        assert to_json(await client.list_input_items(response.id))["data"][0]["role"] == "user"
        assert (await client.delete_response(response.id)).deleted
        assert [model.id for model in (await client.list_models()).data] == [MODEL, "default"]
        assert (await client.get_model(MODEL)).model.id == MODEL
        tokens = (await client.tokenize(model=MODEL, prompt=ANSWER)).tokens
        assert (await client.detokenize(model=MODEL, tokens=list(tokens))).prompt == ANSWER
        replies = [reply async for reply in client.invoke("/v1/chat/completions", chat())]
        assert replies[0]["choices"][0]["message"]["content"] == ANSWER
        with pytest.raises(ApiError):
            await client.embed(model=MODEL, input="x")


def test_both_clients_have_every_rpc(scripted: Server) -> None:
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncClient) if not name.startswith("_")}
    num_rpcs = sum(len(service.methods) for service in SERVICES)
    assert len(public - {"close"}) == num_rpcs


# What plain stubs send to each RPC, and the field in which its answer must say something; None: refused by this model.
PARAMS = {"params": chat()}
PROMPT = {"params": {"model": MODEL, "prompt": HELLO}}
INPUT = {"params": {"model": MODEL, "input": HELLO}}
STUB_CALLS: dict[str, tuple[Json, str | None]] = {
    "CreateChatCompletion": (PARAMS, "choices"),
    "StreamChatCompletion": (PARAMS, "choices"),
    "CreateCompletion": (PROMPT, "choices"),
    "StreamCompletion": (PROMPT, "choices"),
    "CreateResponse": (INPUT, "response"),
    "StreamResponse": (INPUT, "type"),
    "GetResponse": ({"response_id": "ID"}, "response"),
    "ListInputItems": ({"response_id": "ID"}, "data"),
    "CancelResponse": ({"response_id": "ID"}, None),
    "DeleteResponse": ({"response_id": "ID"}, "deleted"),
    "CreateEmbedding": ({"model": MODEL, "input": "x"}, None),
    "ListModels": ({}, "data"),
    "GetModel": ({"model": MODEL}, "model"),
    "Tokenize": ({"model": MODEL, "prompt": "x"}, "tokens"),
    "Detokenize": ({"model": MODEL, "tokens": [504]}, "prompt"),
}


def test_plain_stubs_reach_every_rpc(channel: grpc.Channel, client: Client) -> None:
    response_id = client.respond(model=MODEL, input=HELLO).response.id
    methods = {method.name: method for service in SERVICES for method in service.methods}
    assert methods.keys() == STUB_CALLS.keys() | {"Invoke"}
    for name, (fields, says) in STUB_CALLS.items():
        fields = {key: response_id if value == "ID" else value for key, value in fields.items()}
        request = from_json(message_factory.GetMessageClass(methods[name].input_type), fields)
        reply_type = message_factory.GetMessageClass(methods[name].output_type)
        path = f"{methods[name].containing_service.name}/{name}"
        if says is None:
            assert failure(channel, path, request.SerializeToString()).code() in (
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.INVALID_ARGUMENT,
            )
            continue
        frames, _ = call(channel, path, request.SerializeToString())
        assert getattr(reply_type.FromString(frames[0]), says), name


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert listed >= {service.full_name for service in SERVICES}
    assert "grpc.health.v1.Health" in listed


def readme_grpcurl() -> list[str]:
    """The README's grpcurl command, split as a shell would."""
    found = re.search(r"^grpcurl .*?(?:[^\\]\n)", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return shlex.split(found[0].replace("\\\n", " "))


def test_readme_json_is_accepted_by_reflection_alone(channel: grpc.Channel) -> None:
    *_, body, _, method = readme_grpcurl()
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, name = method.split("/")
    described = pool.FindServiceByName(service).methods_by_name[name]
    request = json_format.Parse(body, message_factory.GetMessageClass(described.input_type)())
    frames, _ = call(channel, method.removeprefix(f"{PACKAGE}."), request.SerializeToString())
    reply = json_format.MessageToDict(message_factory.GetMessageClass(described.output_type).FromString(frames[0]))
    assert reply["choices"][0]["message"]["content"]


def test_buf_curl_calls_by_reflection(scripted: Server) -> None:
    *_, body, _, method = readme_grpcurl()
    buf = Path(sys.executable).with_name("buf")
    command = [str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", body]
    done = subprocess.run(
        [*command, f"http://{scripted.grpc_address}/{method}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_readme_grpcurl_line(scripted: Server) -> None:
    if shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not installed; it has no package of its makers' on PyPI, npm or Debian")
    command = [scripted.grpc_address if part == "127.0.0.1:9000" else part for part in readme_grpcurl()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("service", ["", *(service.full_name for service in SERVICES)])
def test_health_check(channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as failed:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=DEADLINE_S)
    unknown: Any = failed.value
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=DEADLINE_S)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()


ERRORS: list[tuple[str, Json, grpc.StatusCode, Json]] = [
    (
        "ChatCompletionService/CreateChatCompletion",
        {"params": chat(temperature=3.0)},
        grpc.StatusCode.INVALID_ARGUMENT,
        {"reason": "invalid_value", "param": "temperature", "http_status": "400", "type": "invalid_request_error"},
    ),
    (
        "ChatCompletionService/CreateChatCompletion",
        {"params": chat("word " * 12_000)},
        grpc.StatusCode.INVALID_ARGUMENT,
        {"reason": "context_length_exceeded", "param": "messages", "http_status": "400"},
    ),
    (
        "ChatCompletionService/StreamChatCompletion",
        {"params": chat() | {"model": "absent"}},
        grpc.StatusCode.NOT_FOUND,
        {"reason": "model_not_found", "param": "model", "http_status": "404"},
    ),
    (
        "ResponseService/GetResponse",
        {"response_id": "resp_none"},
        grpc.StatusCode.NOT_FOUND,
        {"reason": "response_not_found", "http_status": "404"},
    ),
    (
        "ChatCompletionService/CreateChatCompletion",
        {"params": chat("the queue is full")},
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        {"reason": "rate_limit_exceeded", "http_status": "429", "type": "rate_limit_error"},
    ),
    (
        "ChatCompletionService/StreamChatCompletion",
        {"params": chat("break in the middle")},
        grpc.StatusCode.INTERNAL,
        {"reason": "internal_error", "http_status": "500", "type": "server_error"},
    ),
    (
        "EmbeddingService/CreateEmbedding",
        {"model": MODEL, "input": "x"},
        grpc.StatusCode.UNIMPLEMENTED,
        {"reason": "unsupported", "http_status": "501"},
    ),
    (
        "RawService/Invoke",
        {"path": "/v1/models"},
        grpc.StatusCode.NOT_FOUND,
        {"reason": "unknown_url", "param": "path"},
    ),
]


@pytest.mark.parametrize(
    ("method", "fields", "code", "info"), ERRORS, ids=[f"{e[3]['reason']}-{e[0].split('/')[1]}" for e in ERRORS]
)
def test_errors_carry_google_rpc_details(
    channel: grpc.Channel, method: str, fields: Json, code: grpc.StatusCode, info: Json
) -> None:
    request_type = message_factory.GetMessageClass(
        next(m.input_type for s in SERVICES for m in s.methods if f"{s.name}/{m.name}" == method)
    )
    failed = failure(channel, method, from_json(request_type, fields).SerializeToString())
    assert failed.code() is code
    status = status_pb2.Status.FromString(dict(failed.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (code.value[0], failed.details())
    found = unpack(status, error_details_pb2.ErrorInfo)
    assert found.domain == "burrstone"
    assert ({"reason": found.reason} | dict(found.metadata)).items() >= info.items()
    if "param" in info:
        [violation] = unpack(status, error_details_pb2.BadRequest).field_violations
        assert violation.field == info["param"]
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert unpack(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


def unpack(status: Any, cls: Callable[[], Any]) -> Any:
    detail = cls()
    assert any(packed.Unpack(detail) for packed in status.details), f"no {detail.DESCRIPTOR.name}"
    return detail


def test_the_clients_error_says_what_the_details_say(client: Client) -> None:
    with pytest.raises(ApiError) as failed:
        client.chat(**chat("the queue is full"), request_id="mine-1")
    error = failed.value
    assert (error.status, error.http_status, error.code) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        429,
        "rate_limit_exceeded",
    )
    assert error.retry_after_s is not None and error.retry_after_s > 0
    assert error.request_id == "mine-1"


@pytest.mark.parametrize("stream", [False, True])
def test_deadline_reaches_the_engine(scripted: Server, client: Client, stream: bool) -> None:
    with pytest.raises(ApiError) as failed:
        if stream:
            for _ in client.stream_chat(**chat("never finish"), timeout_s=1.0):
                assert generations_running(scripted) == 1
        else:
            client.chat(**chat("never finish"), timeout_s=1.0)
    assert failed.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: generations_running(scripted) == 0)


def test_leaving_frees_the_engine(scripted: Server, client: Client) -> None:
    streams = [client.stream_chat(**chat("never finish")) for _ in range(20)]
    for stream in streams:
        next(stream)
    assert generations_running(scripted) == 20
    for stream in streams:
        stream.close()
    wait_until(lambda: generations_running(scripted) == 0)


def test_leaving_an_unary_call_frees_the_engine(scripted: Server, channel: grpc.Channel) -> None:
    request = from_json(chat_pb2.CreateChatCompletionRequest, {"params": chat("never finish")})
    rpc: Any = channel.unary_unary(f"/{PACKAGE}.ChatCompletionService/CreateChatCompletion")
    running = rpc.future(request.SerializeToString(), timeout=DEADLINE_S)
    wait_until(lambda: generations_running(scripted) == 1)
    running.cancel()
    wait_until(lambda: generations_running(scripted) == 0)


def test_too_large_a_message_is_refused(channel: grpc.Channel) -> None:
    request = chat_pb2.CreateChatCompletionRequest()
    request.params.model = "m" * (5 * 2**20)
    failed = failure(channel, "ChatCompletionService/CreateChatCompletion", request.SerializeToString())
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_too_large_metadata_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        call(channel, "ModelService/ListModels", b"", (("x-big", "a" * 60_000),))
    error: Any = failed.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel) -> None:
    failed = failure(channel, "ChatCompletionService/CreateChatCompletion", b"\xff\xff\xff")
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT


# Field 999 as a varint: no message of ours has it.
UNKNOWN_FIELD = b"\xb8\x3e\x01"


@pytest.mark.parametrize("nested", [False, True])
def test_unknown_proto_fields_are_refused(channel: grpc.Channel, nested: bool) -> None:
    params: Message = from_json(chat_pb2.ChatCompletionParams, chat())
    inner = params.SerializeToString() + (UNKNOWN_FIELD if nested else b"")
    request = chat_pb2.CreateChatCompletionRequest(params=chat_pb2.ChatCompletionParams.FromString(inner))
    data = request.SerializeToString() + (b"" if nested else UNKNOWN_FIELD)
    failed = failure(channel, "ChatCompletionService/CreateChatCompletion", data)
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert ApiError(failed).code == "unknown_parameter"


# Streams are of one token: how later ones are grouped into events depends on how fast they are read.
RAW: list[tuple[str, Json]] = [
    ("/v1/chat/completions", chat()),
    ("/v1/chat/completions", chat(stream=True, max_tokens=1, stream_options={"include_usage": True})),
    ("/v1/completions", {"model": MODEL, "prompt": HELLO, "stream": True, "max_tokens": 1}),
    ("/v1/responses", {"model": MODEL, "input": HELLO, "stream": True, "max_output_tokens": 1}),
    ("/v1/messages", chat(max_tokens=20)),
    ("/v1/messages", chat(max_tokens=1, stream=True)),
    ("/v1/messages/count_tokens", chat()),
    ("/tokenize", {"model": MODEL, "prompt": HELLO}),
]


@pytest.mark.parametrize(("path", "body"), RAW, ids=[f"{i}{path}" for i, (path, _) in enumerate(RAW)])
def test_invoke_answers_the_very_json_of_http(scripted: Server, channel: grpc.Channel, path: str, body: Json) -> None:
    request = raw_pb2.InvokeRequest(path=path, body=json.dumps(body).encode())
    frames, _ = call(channel, "RawService/Invoke", request.SerializeToString())
    events = [raw_pb2.InvokeResponse.FromString(frame) for frame in frames]
    over_grpc = [(event.event or None, same(json.loads(event.body))) for event in events]
    if body.get("stream"):
        over_http = [(name, same(data)) for name, data in scripted.stream(path, body) if data != "[DONE]"]
    else:
        over_http = [(None, same(scripted.post(path, body)[1]))]
    assert over_grpc == over_http


def same(value: Any) -> Any:
    """Without ids and times, which differ between any two requests."""
    if isinstance(value, dict):
        changing = ("id", "item_id", "created", "created_at", "completed_at")
        return {name: same(item) for name, item in value.items() if name not in changing}
    return [same(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("given", "kept"), [("my-id.1", True), ("bad id!", False), ("x" * 65, False), (None, False)])
def test_request_id_comes_back_in_the_initial_metadata(channel: grpc.Channel, given: str | None, kept: bool) -> None:
    metadata = (("x-request-id", given),) if given is not None else ()
    requests: list[tuple[str, Message]] = [
        ("ModelService/ListModels", models_pb2.ListModelsRequest()),
        (
            "ChatCompletionService/StreamChatCompletion",
            from_json(chat_pb2.StreamChatCompletionRequest, {"params": chat()}),
        ),
    ]
    for method, request in requests:
        _, answered = call(channel, method, request.SerializeToString(), metadata)
        returned = dict(answered.initial_metadata())["x-request-id"]
        assert (returned == given) is kept
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", returned)


def test_request_ids_of_ours_differ(channel: grpc.Channel) -> None:
    calls = [call(channel, "ModelService/ListModels", b"")[1] for _ in range(3)]
    ids = [dict(answered.initial_metadata())["x-request-id"] for answered in calls]
    assert all(one != other for one, other in itertools.combinations(ids, 2))


def test_failed_calls_say_their_request_id_too(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        call(channel, "ModelService/GetModel", b"", (("x-request-id", "lost-1"),))
    error: Any = failed.value
    assert dict(error.trailing_metadata())["x-request-id"] == "lost-1"
