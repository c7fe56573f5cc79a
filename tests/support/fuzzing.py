"""Requests that are nearly right: good ones with something hostile in one place, over both wires."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness import MODEL

Json = Any
Complain = Callable[[Any], str | None]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer"}}, "required": ["ok"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"ok": true}'}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
]
_CHAT = {"model": MODEL, "messages": TURNS, "max_tokens": 2, "temperature": 0.5, "seed": 1}
_ANSWER = {"name": "answer", "schema": SCHEMA, "strict": True}
GOOD: list[tuple[str, Json]] = [
    ("/v1/chat/completions", _CHAT | {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}),
    ("/v1/chat/completions", _CHAT | {"tools": [TOOL], "tool_choice": "required", "stream": True}),
    ("/v1/chat/completions", _CHAT | {"functions": [TOOL["function"]], "function_call": {"name": "get_weather"}}),
    ("/v1/chat/completions", _CHAT | {"response_format": {"type": "json_schema", "json_schema": _ANSWER}}),
    ("/v1/chat/completions", _CHAT | {"structured_outputs": {"regex": "[ab]{3}"}, "stop": ["a"], "top_k": 3}),
    (
        "/v1/chat/completions",
        _CHAT | {"structured_outputs": {"choice": ["yes", "no"]}, "min_p": 0.1, "bad_words": ["x"]},
    ),
    ("/v1/chat/completions", _CHAT | {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}, "stop_token_ids": [5]}),
    ("/v1/chat/completions", _CHAT | {"structured_outputs": {"json": SCHEMA}, "chat_template_kwargs": {}}),
    ("/v1/chat/completions", _CHAT | {"logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}, "n": 2}),
    (
        "/v1/chat/completions",
        _CHAT | {"stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"}, "user": "u"},
    ),
    ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 2}),
    ("/v1/completions", {"model": MODEL, "prompt": [[504, 314]], "max_tokens": 2, "n": 2, "best_of": 2, "seed": 3}),
    ("/v1/completions", {"model": MODEL, "prompt": "Red,", "max_tokens": 2, "stream": True, "stop": ","}),
    ("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 16, "instructions": "x", "store": True}),
    (
        "/v1/responses",
        {
            "model": MODEL,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "Sunny."},
            ],
            "max_output_tokens": 16,
            "stream": True,
            "tools": [{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item]
            "text": {"format": {"type": "json_schema", **_ANSWER}},
        },
    ),
    (
        "/v1/messages",
        {
            "model": MODEL,
            "max_tokens": 2,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Sunny."}]},
            ],
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any"},
            "stop_sequences": ["."],
            "stream": True,
        },
    ),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "system": "x"}),
    ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"}),
    ("/tokenize", {"model": MODEL, "messages": TURNS, "tools": [TOOL], "add_generation_prompt": True}),
    ("/tokenize", {"model": MODEL, "prompt": "Hi", "add_special_tokens": False, "return_token_strs": True}),
    ("/detokenize", {"model": MODEL, "tokens": [504, 314, 260]}),
]


def nested(levels: int) -> Json:
    value: Json = {"type": "object"}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


HOSTILE: list[Json] = [
    *(None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, -1e-320),
    *("", " ", "a", "\x00", "\ud800", "\u202e\ufeff", "🦙" * 50, "a" * 20_000, "<|im_start|>system\n<|im_end|>"),
    *("{{ 7 * 7 }}{% raw %}", "{", "[[[", '{"a": 1e999}', '{"a": "\\ud800"}', "NaN", "'; --", "../../etc/passwd"),
    *("(", "(a*)*b", "(a{100}){100}", "^(|.*)$", "\\p{L}+", "(?<=a)b", "[z-a]", "a{3,1}", "root ::= root", "root ::= "),
    *('start: "a" start |', "<tool_call>", '<tool_call>\n{"name": "f"', "json_object", "auto", "9" * 5000, "١٢"),
    *([], [[]], [None], ["a"] * 300, [1, "a"], [[1], ["a"]], {}, {"": None}, {"a": {"a": {}}}, [0] * 3000),
    *({"type": "text"}, {"type": "nothing"}, {"role": "user"}, nested(20), nested(62), {"$ref": "#"}, {"type": 3}),
    *({"enum": []}, {"enum": [1, "a", None]}, {"const": {}}, {"anyOf": []}, {"allOf": [{}, False]}, {"not": {}}),
    *({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, {"$ref": "http://127.0.0.1/x"}, {"pattern": "("}),
    *({"type": "string", "pattern": "(?=a)", "minLength": 2**40}, {"type": "integer", "minimum": 10**40}),
    *({"type": "array", "minItems": 10**6}, {"type": "object", "minProperties": 10**5}, {"type": ["object", "null"]}),
    *({"type": "object", "patternProperties": {"(": {}}}, {"type": "string", "format": "no such format"}),
    *({"type": "number", "multipleOf": 0}, {"type": "object", "required": ["absent"], "additionalProperties": False}),
]
EXTRA = ["strict", "name", "type", "logprobs", "audio", "priority", "x", "$defs"]
json_values = st.recursive(
    st.sampled_from(HOSTILE) | st.text(max_size=20) | st.integers() | st.floats(allow_nan=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def nearly_good(draw: st.DrawFn) -> tuple[str, Json]:
    """(path, body): a good request, mostly with one or two places replaced, dropped or added."""
    path, good = draw(st.sampled_from(GOOD))
    body = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, 2))):
        holder, key = draw(st.sampled_from(list(places(body))))
        value = copy.deepcopy(draw(json_values))  # what is drawn is shared, and may be the next place
        if draw(st.integers(0, 9)) == 0:
            del holder[key]
        elif isinstance(holder, dict) and draw(st.integers(0, 9)) == 0:
            holder[draw(st.sampled_from(EXTRA))] = value
        else:
            holder[key] = value
        if not body:
            break
    return path, body


def places(value: Json) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from places(child)


def encoded(body: Json) -> bytes:
    """JSON text; lone surrogates are written as the escapes that a client may send."""
    return json.dumps(body).encode()


def fuzz(strategy: st.SearchStrategy[Any], complain: Complain, examples: int) -> tuple[int, list[str]]:
    """(requests sent, what was wrong). Every example runs, whatever the others did; the same ones every time."""
    sent = 0
    complaints: dict[str, None] = {}

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(example: Any) -> None:
        nonlocal sent
        sent += 1
        complaint = complain(example)
        if complaint is not None:
            complaints[complaint] = None

    run()
    return sent, list(complaints)
