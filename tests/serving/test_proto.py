"""The protos: the stubs are current, every message survives the way to JSON and back, no HTTP field is forgotten."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from rpcs import MODULES, PROTOS

from burrstone.batching.errors import InvalidRequest
from burrstone.openai.v1 import chat_pb2, completions_pb2, embeddings_pb2, responses_pb2, tokenize_pb2
from burrstone.serving.api.chat_schema import CreateChatCompletion
from burrstone.serving.api.completions import CreateCompletion
from burrstone.serving.api.embeddings import CreateEmbedding
from burrstone.serving.api.responses_schema import CreateResponse
from burrstone.serving.api.tokens import Detokenize, Tokenize
from burrstone.serving.edges import proto_convert_hot as hot
from burrstone.serving.edges.proto_convert import check_known, from_json, request_json, to_json, typed_names
from burrstone.serving.edges.proto_convert_tables import REQUEST_EXTRAS, UNIONS

ROOT = Path(__file__).parents[2]
RAW = {"InvokeRequest", "InvokeResponse"}  # they carry JSON as bytes and are never converted
MESSAGES = [descriptor for module in MODULES for descriptor in module.DESCRIPTOR.message_types_by_name.values()]
CONVERTED = [descriptor for descriptor in MESSAGES if descriptor.name not in RAW]


def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values if value.number])
    if field.name.endswith("_json"):
        return st.sampled_from(['{"a":[1,2.5,"x"],"b":true}', "{}", '{"type":"object"}'])
    return {
        FieldDescriptor.CPPTYPE_STRING: st.text(min_size=1, max_size=8),
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    }[field.cpp_type]


@st.composite
def filled(draw: st.DrawFn, descriptor: Descriptor, *, every: bool) -> Message:
    """A message with every field set, or some; one of each oneof."""
    module = next(module for module in MODULES if descriptor.file.name == module.DESCRIPTOR.name)
    message: Message = getattr(module, descriptor.name)()
    oneofs = {
        field.containing_oneof.name: field.containing_oneof for field in descriptor.fields if field.containing_oneof
    }
    groups = [[field] for field in descriptor.fields if field.containing_oneof is None]
    groups += [list(oneof.fields) for oneof in oneofs.values()]
    for fields in groups:
        field = draw(st.sampled_from(fields))
        if field.name == "extra_json" or not (every or draw(st.booleans())):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            getattr(message, field.name).update(
                draw(st.dictionaries(scalar(key), scalar(value), min_size=1, max_size=2))
            )
        elif field.message_type is not None:
            target = getattr(message, field.name)
            child = draw(filled(field.message_type, every=every))
            (target.add() if field.is_repeated else target).CopyFrom(child)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(scalar(field), min_size=1, max_size=2)))
        else:
            setattr(message, field.name, draw(scalar(field)))
    return message


@pytest.mark.parametrize("descriptor", CONVERTED, ids=lambda descriptor: descriptor.name)
def test_every_message_survives_json(descriptor: Descriptor) -> None:
    if descriptor.full_name in UNIONS:
        pytest.skip("a union has no JSON object of its own; it is covered inside the messages that hold it")

    @settings(max_examples=15, deadline=None)
    @given(filled(descriptor, every=True), filled(descriptor, every=False))
    def check(full: Message, sparse: Message) -> None:
        assert from_json(type(full), to_json(full)) == full
        # JSON cannot say "a union that is there but unset"; what it can say stays.
        once = from_json(type(sparse), to_json(sparse))
        assert from_json(type(once), to_json(once)) == once

    check()


# HTTP fields without a place in the typed message, and why.
NOT_IN_PROTO = {
    "stream": "a streaming RPC says so itself",
    "stream_options": "beside `params` in the streaming request",
    "conversation": "may only be null",
    "prompt": "Responses: may only be null",
    "encoding_format": "proto carries numbers",
}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (CreateChatCompletion, chat_pb2.ChatCompletionParams),
        (CreateCompletion, completions_pb2.CompletionParams),
        (CreateResponse, responses_pb2.ResponseParams),
        (CreateEmbedding, embeddings_pb2.CreateEmbeddingRequest),
        (Tokenize, tokenize_pb2.TokenizeRequest),
        (Detokenize, tokenize_pb2.DetokenizeRequest),
    ],
)
def test_every_http_field_has_a_place(schema: Any, message: type[Message]) -> None:
    names = {field.alias or name for name, field in schema.model_fields.items()}
    extras = REQUEST_EXTRAS.get(message.DESCRIPTOR.full_name, frozenset())
    typed = typed_names(message.DESCRIPTOR)  # type: ignore[arg-type]
    assert names - typed - extras - set(NOT_IN_PROTO) == set()
    assert not extras & typed, "a field that is typed is not an extra"


def test_stubs_are_current(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "serving/proto/generate.py", tmp_path], check=True)
    for fresh in tmp_path.rglob("*_pb2*"):
        assert (PROTOS / fresh.name).read_text() == fresh.read_text(), "run `make proto`"


@pytest.mark.parametrize(
    ("encode", "cls", "body"),
    [
        (
            hot.chat_chunk,
            chat_pb2.StreamChatCompletionResponse,
            {
                "id": "c1",
                "object": "chat.completion.chunk",
                "created": 7,
                "model": "m",
                "service_tier": "default",
                "usage": None,
                "choices": [{"index": 1, "delta": {"content": "x"}, "logprobs": None, "finish_reason": None}],
            },
        ),
        (
            hot.completion_chunk,
            completions_pb2.StreamCompletionResponse,
            {
                "id": "c1",
                "object": "text_completion",
                "created": 7,
                "model": "m",
                "choices": [{"index": 0, "text": "x", "logprobs": None, "finish_reason": None}],
            },
        ),
        (
            hot.response_event,
            responses_pb2.StreamResponseResponse,
            {
                "type": "response.output_text.delta",
                "sequence_number": 4,
                "item_id": "msg_1",
                "output_index": 0,
                "content_index": 0,
                "delta": "x",
                "logprobs": [],
            },
        ),
    ],
)
def test_the_short_way_gives_the_same_message(encode: Any, cls: type[Message], body: dict[str, Any]) -> None:
    assert encode(body) == from_json(cls, body)


@pytest.mark.parametrize("name", ["temperature", "top_k", "chat_template", "mm_processor_kwargs", "vllm_xargs"])
def test_extra_json_is_an_allow_list(name: str) -> None:
    params = chat_pb2.ChatCompletionParams(extra_json={name: "1"})
    with pytest.raises(InvalidRequest, match="extra_json") as refused:
        request_json(params, max_json_depth=8)
    assert refused.value.param == name


@pytest.mark.parametrize("text", ["{", "nul", "[[[[[[[[[1]]]]]]]]]"])
def test_bad_json_text_is_refused(text: str) -> None:
    params = chat_pb2.ChatCompletionParams(extra_json={"prediction": text})
    with pytest.raises(InvalidRequest, match="prediction"):
        request_json(params, max_json_depth=8)


def test_fields_of_a_newer_proto_are_noticed() -> None:
    newer = chat_pb2.CreateChatCompletionRequest.FromString(b"\xf8\x3f\x01")  # field 1023
    with pytest.raises(InvalidRequest, match="1023"):
        check_known(newer)
