"""The same request over HTTP and gRPC, on the real engine: same tokens, finish reasons, tool calls, logprobs, usage, errors."""

import itertools
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from burrstone.serving.client import ApiError, Client
from burrstone.serving.edges.proto_convert import to_json
from harness import MODEL, Server

pytestmark = pytest.mark.engine
Json = dict[str, Any]
# What differs between any two requests.
VOLATILE = {"id", "created", "created_at", "completed_at", "item_id", "system_fingerprint", "call_id"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
FLAT_TOOL = {"type": "function"} | TOOL["function"]  # type: ignore[operator]
MESSAGES = [
    [{"role": "user", "content": "Say hello."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a mill?"}],
    [{"role": "user", "content": [{"type": "text", "text": "Count:"}, {"type": "text", "text": " one, two,"}]}],
    [
        {"role": "user", "content": "Weather in Rome?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ],
]
CHAT_OPTIONS: list[Json] = [
    {},
    {"logprobs": True, "top_logprobs": 3},
    {"n": 2, "temperature": 0.9, "seed": 7},
    {"stop": ["o", "."]},
    {"frequency_penalty": 0.5, "presence_penalty": -0.5},
    {"logit_bias": {"19556": 30}, "top_p": 0.9, "seed": 3, "temperature": 0.7},
    {"tools": [TOOL], "tool_choice": "required", "max_tokens": 48},
    {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 48},
    {"tools": [TOOL], "tool_choice": "none"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"structured_outputs": {"regex": "[0-9]{3}"}, "ignore_eos": False},
    {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 11, "temperature": 0.5},
]
COMPLETION_PROMPTS: list[Any] = ["One, two,", ["Red,", "Green,"], [504, 314, 260], [[504, 314], [260, 198]]]
COMPLETION_OPTIONS: list[Json] = [
    {},
    {"logprobs": 2},
    {"echo": True},
    {"n": 2, "seed": 5, "temperature": 1.0},
    {"stop": ","},
]
RESPONSE_OPTIONS: list[Json] = [
    {"input": "Say hello."},
    {"input": [{"role": "user", "content": "Say hello."}], "instructions": "Be brief."},
    {"input": "Weather in Rome?", "tools": [FLAT_TOOL], "tool_choice": "required", "max_output_tokens": 48},
    {"input": "Yes?", "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}},
]
BAD_CHAT: list[Json] = [
    {"model": "absent"},
    {"temperature": 3.0},
    {"n": 1000},
    {"top_logprobs": 3},
    {"max_tokens": 0},
    {"max_tokens": 100_000},
    {"tool_choice": "required"},
    {"messages": [{"role": "tool", "tool_call_id": "none", "content": "x"}]},
    {"messages": [{"role": "user", "content": "word " * 4000}]},
    {"structured_outputs": {"regex": "(["}},
    {"structured_outputs": {"json": {"type": "no such type"}}},
    {"stop": ["a", "b", "c", "d", "e"]},
    {"logit_bias": {"999999": 1}},
]


def chat_cases() -> Iterator[Json]:
    """Every option with every wire shape; the messages rotate."""
    messages = itertools.cycle(MESSAGES)
    for options, stream in itertools.product(CHAT_OPTIONS, (False, True)):
        yield {"messages": next(messages), "max_tokens": 12, "temperature": 0.0} | options | stream_fields(stream)


def random_cases(count: int) -> Iterator[Json]:
    """Two or three options together, seeded."""
    rng = random.Random(20261124)
    for _ in range(count):
        body: Json = {"messages": rng.choice(MESSAGES), "max_tokens": rng.randint(1, 16), "temperature": 0.0}
        for options in rng.sample(CHAT_OPTIONS[:6], rng.randint(1, 3)):
            body |= options
        yield body | {"seed": rng.randint(0, 99)} | stream_fields(rng.random() < 0.5)


def stream_fields(stream: bool) -> Json:
    return {"stream": True, "stream_options": {"include_usage": True}} if stream else {}


CASES: list[tuple[str, Json]] = [
    *(("chat", body) for body in chat_cases()),
    *(("chat", body) for body in random_cases(14)),
    *(
        ("completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0.0} | options | stream_fields(stream))
        for (prompt, options), stream in zip(
            itertools.product(COMPLETION_PROMPTS, COMPLETION_OPTIONS), itertools.cycle((False, True)), strict=False
        )
    ),
    *(
        ("responses", {"max_output_tokens": 16, "temperature": 0.0} | options | ({"stream": True} if stream else {}))
        for options, stream in itertools.product(RESPONSE_OPTIONS, (False, True))
    ),
    *(("chat", {"messages": MESSAGES[0], "max_tokens": 4} | bad) for bad in BAD_CHAT),
    ("tokenize", {"prompt": "How many tokens?"}),
    ("tokenize", {"messages": MESSAGES[0], "add_generation_prompt": True}),
    ("detokenize", {"tokens": [504, 314, 260]}),
]
ROUTES = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize(("api", "fields"), CASES, ids=[f"{i}-{api}" for i, (api, _) in enumerate(CASES)])
def test_both_wires_answer_the_same(exact_engine: Server, api: str, fields: Json) -> None:
    body = {"model": MODEL} | fields
    with Client(exact_engine.grpc_address) as client:
        over_http(exact_engine, api, body)  # both of those compared are to find the same of their prompt cached
        assert plain(over_grpc(client, api, body)) == roughly(plain(over_http(exact_engine, api, body)))


def over_http(server: Server, api: str, body: Json) -> Any:
    if body.get("stream"):
        try:
            return assembled([data for _, data in server.stream(ROUTES[api], body) if data != "[DONE]"])
        except urllib.error.HTTPError as error:
            with error:
                return error_of(json.load(error))
    status, reply = server.post(ROUTES[api], body)
    return reply if status == 200 else error_of(reply)


def error_of(reply: Json) -> Json:
    error = reply["error"]
    return {name: error[name] for name in ("type", "param", "message")} | {"code": error["code"] or error["type"]}


def over_grpc(client: Client, api: str, body: Json) -> Any:
    fields = {name: value for name, value in body.items() if name != "stream"}
    calls = {"chat": client.chat, "completions": client.complete, "responses": client.respond}
    streams = {"chat": client.stream_chat, "completions": client.stream_complete, "responses": client.stream_respond}
    try:
        if body.get("stream"):
            return assembled([to_json(frame) for frame in streams[api](**fields)])
        if api == "tokenize":
            return to_json(client.tokenize(**fields))
        if api == "detokenize":
            return to_json(client.detokenize(**fields))
        reply = to_json(calls[api](**fields))
        return reply["response"] if api == "responses" else reply
    except ApiError as error:
        return {"type": error.type, "param": error.param, "message": error.message, "code": error.code}


def assembled(frames: list[Json]) -> list[Json]:
    """A stream without what the clock decides: how choices interleave, and whether two tokens share a frame.

    Frames of one choice become one object, its pieces joined; of the Responses API's events, deltas in a row do.
    """
    whole: dict[Any, Json] = {}
    events: list[Json] = []
    for frame in plain(frames):
        if "choices" in frame or "type" not in frame:
            for choice in frame.pop("choices", None) or [{}]:
                grow(whole.setdefault(choice.get("index"), {}), frame | flattened(choice))
        elif events and frame["type"] == events[-1]["type"]:
            grow(events[-1], flattened(frame))
        else:
            events.append(flattened(frame))
    for event in events:
        event.pop("sequence_number", None)
    return [whole[index] for index in sorted(whole, key=str)] + events


def flattened(value: Json, prefix: str = "") -> Json:
    """Nested objects and numbered lists as one level: delta.content, delta.tool_calls.0.function.arguments, ..."""
    flat: Json = {}
    for name, item in value.items():
        path = f"{prefix}{name}"
        if isinstance(item, dict):
            flat |= flattened(item, f"{path}.")
        elif name == "tool_calls":
            flat |= flattened({str(call["index"]): call for call in item}, f"{path}.")
        else:
            flat[path] = item
    return flat


def grow(whole: Json, piece: Json) -> None:
    for name, item in piece.items():
        if name in whole and (isinstance(item, list) or name.endswith(("text", "delta", "content", "arguments"))):
            whole[name] = whole[name] + item
        else:
            whole[name] = item


def roughly(value: Any) -> Any:
    """The same value with every float approximate: a batch of another shape rounds logprobs in their last digits."""
    if isinstance(value, dict):
        return {name: roughly(item) for name, item in value.items()}
    if isinstance(value, list):
        return [roughly(item) for item in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """Without what differs between any two requests, and without null and [], which proto cannot tell from absent."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: plain(item) for name, item in value.items() if name not in VOLATILE}
    if "tool_calls" in kept:
        for call in kept["tool_calls"] or []:
            call.pop("id", None)
    return {name: item for name, item in kept.items() if item not in (None, [], {})}
