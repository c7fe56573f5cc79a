"""Fuzzed gRPC: messages made from the proto descriptors, good bodies with something hostile in them, and raw bytes."""

import importlib
import time
from typing import Any

import grpc
import pytest
from fuzzing import HOSTILE, encoded, fuzz, nearly_good
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from report import Report
from waiting import wait_until
from wire import generations, greedy_text, grpc_complaint

from burrstone.openai.v1 import raw_pb2
from harness import MODEL, Server

pytestmark = pytest.mark.soak
FILES = ("chat", "completions", "responses", "embeddings", "models", "tokenize", "raw")
METHODS: list[MethodDescriptor] = [
    method
    for file in FILES
    for service in importlib.import_module(f"burrstone.openai.v1.{file}_pb2").DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
PATHS = [f"/{method.containing_service.full_name}/{method.name}" for method in METHODS]
TEXTS = [value for value in HOSTILE if isinstance(value, str) and value.isprintable() and len(value) < 6000]
JSON_TEXTS = ["{}", '{"type":"object"}', '{"a":', "[" * 3000, "null", '"\\ud800"', "1e999", "[1]", *TEXTS[:6]]
JSON_TEXTS += [encoded(value).decode() for value in HOSTILE if isinstance(value, dict)]
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
ALWAYS = ("model", "params", "messages", "input", "prompt", "role", "content", "text", "name", "tokens")
IDS = ["", "resp_1", "x" * 300, "../v1", "\x00"]
RAW_PATHS = [
    "/v1/chat/completions",
    "/v1/messages",
    "/tokenize",
    "/metrics",
    "",
    "//v1/models",
    "/v1/responses/x/cancel",
]
INT_KEYS = {FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1)}
Call = tuple[str, bytes]


@pytest.mark.parametrize(
    ("kind", "messages", "bodies", "raw"), [("scripted", 2800, 600, 600), ("engine", 700, 200, 200)]
)
def test_fuzzed_grpc(
    request: pytest.FixtureRequest, report: Report, kind: str, messages: int, bodies: int, raw: int
) -> None:
    server: Server = request.getfixturevalue(kind)
    before = greedy_text(server)
    counts: dict[str, int] = {}
    sent, complaints = 0, []
    with grpc.insecure_channel(server.grpc_address) as channel:

        def send(call: Call) -> str | None:
            path, data = call
            code, complaint = answer(channel, path, data)
            counts[code] = counts.get(code, 0) + 1
            return None if complaint is None else f"{path}: {complaint}\n    {data[:600]!r}"

        for strategy, examples in ((calls(), messages), (raw_invocations(), bodies), (raw_bytes(), raw)):
            done, found = fuzz(strategy, send, examples)
            sent += done
            complaints += found
    asked_s = time.monotonic()
    wait_until(lambda: generations(server) == 0)
    settled_s = time.monotonic() - asked_s
    figures = {"requests": sent, "by_code": counts, "complaints": len(complaints), "idle_after_s": round(settled_s, 2)}
    report.record(f"fuzz_grpc_{kind}", figures)
    assert not complaints, "\n".join(complaints[:40])
    assert server.get("/ready")[0] == 200
    assert greedy_text(server) == before


def answer(channel: grpc.Channel, path: str, data: bytes) -> tuple[str, str | None]:
    """(status code, what was wrong with the answer)."""
    streams = METHODS[PATHS.index(path)].server_streaming
    call: Any = channel.unary_stream(path) if streams else channel.unary_unary(path)
    try:
        reply = call(data, timeout=120)
        if streams:
            for _ in reply:
                pass
    except grpc.RpcError as error:
        return error.code().name, grpc_complaint(path, error)
    return "OK", None


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Any RPC with a message of its own type, mostly plausible."""
    # Chat, completions and responses come more often than the rest.
    method = draw(st.sampled_from(METHODS[:6] * 3 + METHODS))
    message = draw(filled(method.input_type, 5))
    return PATHS[METHODS.index(method)], message.SerializeToString()


@st.composite
def raw_invocations(draw: st.DrawFn) -> Call:
    """The raw service with HTTP bodies."""
    path, body = draw(nearly_good())
    path = draw(st.sampled_from([path] * 9 + RAW_PATHS))
    body_bytes = draw(st.sampled_from([encoded(body)] * 9 + [b"", b"{", b"[" * 500, b"\xff\xfe"]))
    return _path("Invoke"), raw_pb2.InvokeRequest(path=path, body=body_bytes).SerializeToString()


@st.composite
def raw_bytes(draw: st.DrawFn) -> Call:
    """Any RPC with bytes that may be no message, or a good one that was cut, doubled or bent."""
    method = draw(st.sampled_from(METHODS))
    good = draw(filled(method.input_type, 3)).SerializeToString()
    cut = draw(st.integers(0, len(good)))
    noise = draw(st.binary(max_size=60))
    bent = draw(st.sampled_from([noise, good[:cut], good[:cut] + noise + good[cut:], good + good, b"\x0a" * cut]))
    return PATHS[METHODS.index(method)], bent


def _path(name: str) -> str:
    return next(path for path in PATHS if path.endswith(f"/{name}"))


@st.composite
def filled(draw: st.DrawFn, descriptor: Descriptor, levels: int) -> Message:
    """Some of the fields, one of each oneof; nothing nests deeper than `levels`."""
    message: Message = GetMessageClass(descriptor)()
    # One bad field refuses a whole message, so most messages set few.
    added = set(draw(st.lists(st.integers(0, len(descriptor.fields)), max_size=2)))
    for number, field in enumerate(descriptor.fields):
        if (field.name in ALWAYS or number in added) and (levels or field.message_type is None):
            fill(draw, message, field, levels)
    return message


def fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, levels: int) -> None:
    """One field of the message."""
    target: Any = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        target.update(draw(st.dictionaries(scalar(key), scalar(value), max_size=2)))
    elif field.message_type is not None and field.is_repeated:
        for _ in range(draw(st.integers(1, 2))):
            target.add().CopyFrom(draw(filled(field.message_type, levels - 1)))
    elif field.message_type is not None:
        target.CopyFrom(draw(filled(field.message_type, levels - 1)))
    elif field.is_repeated:
        target.extend(draw(st.lists(scalar(field), max_size=4)))
    else:
        setattr(message, field.name, draw(scalar(field)))


def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of a field by its name, else by its type."""
    name, kind = field.name, field.cpp_type
    if name == "model":
        return st.sampled_from([MODEL] * 9 + ["absent"])
    if name in LIMITS:
        return st.sampled_from([1, 2, 16, 16, 16, 2**31 - 1, -1])
    if name.endswith("_json") or (name == "value" and "ExtraJson" in field.full_name):
        return st.sampled_from(JSON_TEXTS)
    if name.endswith("_id"):
        return st.sampled_from(IDS)
    if field.enum_type is not None:
        numbers = [value.number for value in field.enum_type.values]
        return st.sampled_from(numbers[1:3] * 6 + numbers + [99])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=40)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.sampled_from(["Hi", "get_weather"]) | st.sampled_from(TEXTS) | st.text(max_size=12)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in INT_KEYS:
        return st.integers(1, 3) | st.integers(1, 3) | st.integers(*INT_KEYS[kind])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats(0, 1) | st.floats()
    raise NotImplementedError(f"{field.full_name} has a type that no strategy is written for")
