"""The HTTP API on the real engine: shapes, arithmetic and rules that do not depend on a small model's wits."""

import json
import re
import urllib.request

import pytest

from harness import MODEL, Server

pytestmark = pytest.mark.engine
HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}


def chat(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0, **fields}


def test_chat_has_openais_shape(engine: Server) -> None:
    status, reply = engine.post("/v1/chat/completions", chat())
    assert status == 200
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["role"] == "assistant"
    assert reply["choices"][0]["message"]["refusal"] is None
    assert reply["choices"][0]["finish_reason"] in ("stop", "length")
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_stream_equals_the_whole_answer_and_ends_with_usage(engine: Server) -> None:
    _, whole = engine.post("/v1/chat/completions", chat())
    events = engine.stream("/v1/chat/completions", chat(stream_options={"include_usage": True}))
    assert events[-1][1] == "[DONE]"
    chunks = [data for _, data in events[:-1]]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_stream_without_include_usage_never_mentions_it(engine: Server) -> None:
    events = engine.stream("/v1/chat/completions", chat())
    assert all("usage" not in data for _, data in events if data != "[DONE]")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_tool_call_has_an_object_for_arguments(engine: Server, choice: object) -> None:
    status, reply = engine.post("/v1/chat/completions", chat(tools=[WEATHER], tool_choice=choice, max_tokens=60))
    assert status == 200
    call = reply["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["name"] == "get_weather"
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    assert reply["choices"][0]["finish_reason"] == ("tool_calls" if choice == "required" else "stop")


def test_streamed_tool_call_deltas_follow_the_sdk_rules(engine: Server) -> None:
    events = engine.stream("/v1/chat/completions", chat(tools=[WEATHER], tool_choice="required", max_tokens=60))
    deltas = [
        call
        for _, data in events
        if data != "[DONE]"
        for choice in data["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    assert deltas[0]["id"]
    assert deltas[0]["type"] == "function"
    assert all(delta.keys() == {"index", "function"} for delta in deltas[1:])
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas))["city"]


def test_json_schema_answer_is_valid(engine: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["yes", "n"],
        "additionalProperties": False,
    }
    # A grammar allows any white space; the example keeps a small model from writing nothing else.
    asked = [{"role": "user", "content": 'Repeat: {"yes": true, "n": 3}'}]
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    _, reply = engine.post("/v1/chat/completions", chat(messages=asked, response_format=wanted, max_tokens=60))
    answer = json.loads(reply["choices"][0]["message"]["content"])
    assert isinstance(answer["yes"], bool)
    assert 0 <= answer["n"] <= 9


@pytest.mark.parametrize(
    ("wanted", "pattern"), [({"regex": "[ab]{3}"}, "[ab]{3}"), ({"choice": ["red", "blue"]}, "red|blue")]
)
def test_structured_outputs(engine: Server, wanted: object, pattern: str) -> None:
    _, reply = engine.post("/v1/chat/completions", chat(structured_outputs=wanted))
    assert re.fullmatch(pattern, reply["choices"][0]["message"]["content"])


def test_greedy_choices_are_allowed_and_equal(engine: Server) -> None:
    _, reply = engine.post("/v1/chat/completions", chat(n=3))
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert len(texts) == 3
    assert len(set(texts)) == 1
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]


def test_seed_reproduces_a_sampled_answer(engine: Server) -> None:
    answers = [engine.post("/v1/chat/completions", chat(temperature=1, seed=7))[1] for _ in range(2)]
    assert answers[0]["choices"][0]["message"]["content"] == answers[1]["choices"][0]["message"]["content"]


def test_logprobs(engine: Server) -> None:
    _, reply = engine.post("/v1/chat/completions", chat(logprobs=True, top_logprobs=2, max_tokens=3))
    content = reply["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in content)
    assert reply["choices"][0]["logprobs"]["refusal"] is None


def test_stop_string_is_not_in_the_answer(engine: Server) -> None:
    _, free = engine.post("/v1/chat/completions", chat(max_tokens=20))
    text = free["choices"][0]["message"]["content"]
    stop = text.split()[2]
    _, reply = engine.post("/v1/chat/completions", chat(max_tokens=20, stop=[stop]))
    assert stop not in reply["choices"][0]["message"]["content"]
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_prefix_cache_is_on_and_reported(engine: Server) -> None:
    long = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 60}]
    engine.post("/v1/chat/completions", chat(messages=long, max_tokens=1))
    _, reply = engine.post("/v1/chat/completions", chat(messages=long, max_tokens=1))
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] > 256


def test_context_overflow_is_named_by_its_code(engine: Server) -> None:
    status, reply = engine.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": "word " * 4000}]))
    assert status == 400
    assert reply["error"]["code"] == "context_length_exceeded"
    assert "This model's maximum context length is" in reply["error"]["message"]


def test_default_max_tokens_bounds_an_answer_without_a_limit(engine: Server) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Count for ever."}], "ignore_eos": True}
    _, reply = engine.post("/v1/chat/completions", body)
    assert reply["usage"]["completion_tokens"] == 64
    assert reply["choices"][0]["finish_reason"] == "length"


def test_completions_with_echo_and_several_prompts(engine: Server) -> None:
    body = {"model": MODEL, "prompt": ["One two", "Three"], "max_tokens": 3, "temperature": 0, "echo": True}
    _, reply = engine.post("/v1/completions", body)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert reply["choices"][0]["text"].startswith("One two")
    assert reply["object"] == "text_completion"


def test_responses_remembers_the_previous_turn(engine: Server) -> None:
    body = {"model": MODEL, "input": "My name is Ada.", "max_output_tokens": 8, "temperature": 0}
    _, first = engine.post("/v1/responses", body)
    _, second = engine.post("/v1/responses", body | {"input": "What is my name?", "previous_response_id": first["id"]})
    assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"]
    assert engine.get(f"/v1/responses/{first['id']}") == (200, first)
    assert (
        engine.get(f"/v1/responses/{first['id']}/input_items")[1]["data"][0]["content"][0]["text"] == "My name is Ada."
    )
    assert engine.request("DELETE", f"/v1/responses/{first['id']}")[1]["deleted"]
    assert engine.get(f"/v1/responses/{first['id']}")[0] == 404


def test_cut_response_stream_ends_with_incomplete(engine: Server) -> None:
    body = {"model": MODEL, "input": "Tell a story.", "max_output_tokens": 4}
    events = [data for _, data in engine.stream("/v1/responses", body)]
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_messages_and_count_tokens(engine: Server) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 6}
    status, reply = engine.post("/v1/messages", body)
    assert status == 200
    assert reply["id"].startswith("msg_")
    assert reply["stop_reason"] in ("end_turn", "max_tokens")
    _, counted = engine.post("/v1/messages/count_tokens", {"model": MODEL, "messages": HELLO})
    assert counted["input_tokens"] == reply["usage"]["input_tokens"] + reply["usage"]["cache_read_input_tokens"]


def test_messages_with_any_tool(engine: Server) -> None:
    tool = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 60, "tools": [tool], "tool_choice": {"type": "any"}}
    _, reply = engine.post("/v1/messages", body)
    assert reply["stop_reason"] == "tool_use"
    assert isinstance(reply["content"][-1]["input"]["city"], str)


def test_tokenize_round_trip(engine: Server) -> None:
    _, tokens = engine.post("/tokenize", {"model": MODEL, "prompt": "Hello there"})
    assert tokens["count"] == len(tokens["tokens"])
    assert engine.post("/detokenize", {"model": MODEL, "tokens": tokens["tokens"]})[1]["prompt"] == "Hello there"


def test_embeddings_say_why_they_are_not_there(engine: Server) -> None:
    status, reply = engine.post("/v1/embeddings", {"model": MODEL, "input": "hello"})
    assert status == 501
    assert "embedding" in reply["error"]["message"]


def test_models(engine: Server) -> None:
    _, models = engine.get("/v1/models")
    assert [model["id"] for model in models["data"]] == [MODEL, "default"]
    assert engine.get(f"/v1/models/{MODEL}")[1]["id"] == MODEL
    status, reply = engine.get("/v1/models/owner/other")
    assert (status, reply["error"]["code"]) == (404, "model_not_found")


def test_metrics_are_ours_and_vllms(engine: Server) -> None:
    with urllib.request.urlopen(f"{engine.url}/metrics") as reply:
        text = reply.read().decode()
    assert "burrstone_requests_total" in text
    assert "vllm:num_requests_running" in text
