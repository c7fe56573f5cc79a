"""What a request may hold before the server does any work for it, checked on the parsers themselves."""

import json
import logging
from typing import Any

import pytest
from pydantic import ValidationError

from burrstone.batching.errors import InvalidRequest
from burrstone.serving.api import chat, completions
from burrstone.serving.api.base import RequestModel
from burrstone.serving.api.chat_schema import CreateChatCompletion
from burrstone.serving.api.completions import CreateCompletion
from burrstone.serving.api.messages_schema import CreateMessage
from burrstone.serving.api.responses_convert import refuse_unsupported
from burrstone.serving.api.responses_schema import CreateResponse
from burrstone.serving.api.sizes import MAX_ITEMS
from burrstone.serving.api.tokens import parse_tokenize, tokenize_to_vllm
from burrstone.serving.config import LimitsConfig

LIMITS = LimitsConfig()
HELLO = [{"role": "user", "content": "hello"}]
MANY = [0.5] * (MAX_ITEMS + 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", MANY),
        ("messages", [{"role": "user", "content": MANY}]),
        ("messages", [0] * (MAX_ITEMS + 1)),
        ("tools", MANY),
        ("stop", MANY),
        ("logit_bias", {str(token): "x" for token in range(MAX_ITEMS + 1)}),
    ],
)
def test_a_body_of_too_many_items_is_refused_unread(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"at most {MAX_ITEMS}") as refused:
        chat.parse({"model": "m", "messages": HELLO, field: value}, LIMITS, "reject")
    assert refused.value.param == field


@pytest.mark.parametrize("prompt", [[7] * 200_000, [[7] * 200_000, [8] * 3]])
def test_long_prompts_of_token_ids_are_taken(prompt: Any) -> None:
    assert completions.parse({"model": "m", "prompt": prompt}, LIMITS, "reject").prompt == prompt


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (CreateChatCompletion, "messages", [0] * 50),
        (CreateChatCompletion, "messages", [{"role": "user", "content": [0] * 50}] * 50),
        (CreateChatCompletion, "tools", [{}] * 50),
        (CreateCompletion, "prompt", [-1] * 50),
        (CreateCompletion, "prompt", [[-1] * 50] * 50),
        (CreateResponse, "input", [0] * 50),
        (CreateMessage, "messages", [{"role": "user", "content": [0] * 50}] * 50),
    ],
)
def test_the_first_bad_item_ends_the_check(model: type[RequestModel], field: str, value: Any) -> None:
    """Every further error would cost time and memory, of which a body of millions of items has none to spare."""
    with pytest.raises(ValidationError) as found:
        model.model_validate({field: value})
    assert len([error for error in found.value.errors() if error["loc"][0] == field]) <= 2


def _call(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}


def _tool(**parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "assistant", "tool_calls": [_call('{"a":' * 5000 + "1" + "}" * 5000)]}]},
        {"messages": [{"role": "assistant", "tool_calls": [_call("[]")]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "nobody's"}]},
        {"messages": HELLO, "tools": []},
        {"messages": HELLO, "tools": [_tool(type="object")] * (LIMITS.max_tools + 1)},
        {"messages": HELLO, "tools": [_tool(description="x" * LIMITS.max_grammar_bytes)]},
    ],
)
def test_tokenize_refuses_a_conversation_as_chat_does(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as by_chat:
        chat.parse({"model": "m"} | fields, LIMITS, "reject")
    with pytest.raises(InvalidRequest) as by_tokenize:
        parse_tokenize(fields, LIMITS, "reject")
    assert (by_tokenize.value.message, by_tokenize.value.param) == (by_chat.value.message, by_chat.value.param)


def test_tokenize_counts_the_conversation_that_chat_sends() -> None:
    fields = {
        "messages": [*HELLO, {"role": "assistant", "tool_calls": [_call('{"a": 1}')]}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    sent = chat.to_vllm(chat.parse({"model": "m"} | fields, LIMITS, "reject"))
    counted = tokenize_to_vllm(parse_tokenize(fields, LIMITS, "reject"))
    assert counted == {name: sent[name] for name in fields}


_DEEP: dict[str, Any] = {"type": "object"}
for _ in range(LIMITS.max_grammar_depth):
    _DEEP = {"type": "array", "items": _DEEP}


def _tag(content: Any) -> str:
    tags = [{"type": "tag", "begin": "<f>", "content": content, "end": "</f>"}]
    return json.dumps(
        {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<f>"], "tags": tags}}
    )


def _ask(**structured: Any) -> None:
    chat.parse({"model": "m", "messages": HELLO, "structured_outputs": structured}, LIMITS, "reject")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"type": "json_schema", "json_schema": _DEEP}, "nests deeper"),
        ({"type": "json_schema", "json_schema": {"type": "string", "pattern": "(a{99}){999}"}}, "written out"),
        ({"type": "json_schema", "json_schema": {"properties": []}}, "must be an object"),
        ({"type": "regex", "pattern": "(a{99}){999}"}, "written out"),
        ({"type": "repeat", "min": 1, "max": 10**9, "content": {"type": "any_text"}}, "written out"),
        (
            {"type": "repeat", "min": 1, "max": 999, "content": {"type": "regex", "pattern": "a{99}"}},
            "written out",
        ),
        ({"type": "grammar", "grammar": "x" * LIMITS.max_grammar_bytes}, "max_grammar_bytes"),
    ],
)
def test_formats_within_a_structural_tag_are_limited(content: Any, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule):
        _ask(structural_tag=_tag(content))


def test_an_older_structural_tag_is_limited() -> None:
    structures = [{"begin": "<f>", "schema": _DEEP, "end": "</f>"}]
    with pytest.raises(InvalidRequest, match="nests deeper"):
        _ask(structural_tag=json.dumps({"structures": structures, "triggers": ["<f>"]}))


@pytest.mark.parametrize("text", ["", "{", "3", "[" * 100_000])
def test_a_structural_tag_is_json(text: str) -> None:
    with pytest.raises(InvalidRequest):
        _ask(structural_tag=text)


def test_a_whitespace_pattern_is_limited() -> None:
    with pytest.raises(InvalidRequest, match="whitespace_pattern"):
        _ask(json={"type": "object"}, whitespace_pattern="( {99}){999}")


def test_modest_structural_tags_are_taken() -> None:
    _ask(structural_tag=_tag({"type": "json_schema", "json_schema": {"type": "object"}}))
    _ask(structural_tag=_tag({"type": "repeat", "min": 1, "max": 3, "content": {"type": "regex", "pattern": "a+"}}))


def test_ignored_fields_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Only those of the top level are ignored, as the option's help says; what they hold is never written."""
    with caplog.at_level(logging.INFO, "burrstone.api"):
        chat.parse({"model": "m", "messages": HELLO, "temprature": "secret"}, LIMITS, "ignore")
    assert "temprature" in caplog.text and "secret" not in caplog.text
    with pytest.raises(InvalidRequest, match="Unrecognized"):
        chat.parse({"model": "m", "messages": [HELLO[0] | {"mood": "x"}]}, LIMITS, "ignore")


def test_what_a_client_would_rely_on_is_refused_by_name() -> None:
    prediction = {"type": "content", "content": "hello"}
    with pytest.raises(InvalidRequest) as by_chat:
        chat.parse({"model": "m", "messages": HELLO, "prediction": prediction}, LIMITS, "reject")
    with pytest.raises(InvalidRequest) as by_responses:
        refuse_unsupported({"model": "m", "input": "hello", "max_tool_calls": 1})
    assert [by_chat.value.param, by_responses.value.param] == ["prediction", "max_tool_calls"]
    chat.parse({"model": "m", "messages": HELLO, "prediction": None}, LIMITS, "reject")
    refuse_unsupported({"model": "m", "input": "hello", "max_tool_calls": None})
