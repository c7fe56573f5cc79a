"""The HTTP edge on the scripted engine: errors, limits, streams that break, clients that leave."""

import http.client
import json
import socket
import urllib.request

import pytest
from waiting import generations_running, wait_until

from harness import MODEL, Server


def chat(text: str, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": []}, "model", "missing_required_parameter"),
        ({"model": MODEL}, "messages", "missing_required_parameter"),
        (chat("x", max_tokns=3), "max_tokns", "unknown_parameter"),
        (chat("x", temperature="hot"), "temperature", "invalid_type"),
        (chat("x", temperature=3), "temperature", "invalid_value"),
        (chat("x", n=1000), "n", "invalid_value"),
        (chat("x", stop=["a", "b", "c", "d", "e"]), "stop", "invalid_value"),
        (chat("x", stop=""), "stop", "invalid_value"),
        (chat("x", stream_options={"include_usage": True}), "stream_options", "invalid_value"),
        (chat("x", top_logprobs=2), "top_logprobs", "invalid_value"),
        (chat("x", tools=[]), "tools", "invalid_value"),
        (chat("x", tool_choice="required"), "tool_choice", "invalid_value"),
        (chat("x", priority=3), "priority", "unsupported_parameter"),
        (chat("x", chat_template="{{x}}"), "chat_template", "unsupported_parameter"),
        (chat("x", chat_template_kwargs={"tokenize": True}), "chat_template_kwargs", "invalid_value"),
        (chat("x", logit_bias={"foo": 1}), "logit_bias", "invalid_value"),
        (
            chat("x", response_format={"type": "json_schema"}),
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        ({"model": MODEL, "messages": [{"rol": "user"}]}, "messages[0].role", "missing_required_parameter"),
        (chat("x", max_tokens=100_000), "max_tokens", "context_length_exceeded"),
        ({"model": MODEL, "messages": [{"role": "wizard", "content": "x"}]}, "messages[0]", "invalid_value"),
        ({"model": MODEL, "messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        (
            {"model": MODEL, "messages": [{"role": "tool", "content": "x", "tool_call_id": "call_1"}]},
            "messages[0].tool_call_id",
            "invalid_value",
        ),
    ],
)
def test_bad_requests_name_the_field(scripted: Server, body: object, param: str, code: str) -> None:
    status, reply = scripted.post("/v1/chat/completions", body)
    assert status == 400
    assert reply["error"]["param"] == param
    assert reply["error"]["code"] == code
    assert reply["error"]["type"] == "invalid_request_error"
    assert reply["error"]["message"]


def test_typo_is_answered_with_the_right_name(scripted: Server) -> None:
    _, reply = scripted.post("/v1/chat/completions", chat("x", max_tokns=3))
    assert "'max_tokens'" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/invocations", 404, "unknown_url"),
        ("POST", "/v1/load_lora_adapter", 404, "unknown_url"),
        ("POST", "/collective_rpc", 404, "unknown_url"),
        ("POST", "/sleep", 404, "unknown_url"),
        ("GET", "//v1/models", 404, "unknown_url"),
    ],
)
def test_only_listed_routes_exist(scripted: Server, method: str, path: str, status: int, code: str) -> None:
    body: dict[str, str] | None = {} if method == "POST" else None
    answered, reply = scripted.request(method, path, body)
    assert (answered, reply["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"[1]", {"Content-Type": "application/json"}, 400),
        (b'{"a":NaN}', {"Content-Type": "application/json"}, 400),
        (b'{"model":"\\ud800","messages":[]}', {"Content-Type": "application/json"}, 400),
        (b"[" * 10_000, {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        (b'{"x":"' + b"a" * (5 * 2**20) + b'"}', {"Content-Type": "application/json"}, 413),
    ],
)
def test_bad_bodies(scripted: Server, data: bytes, headers: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", scripted.http_port, timeout=30)
    connection.request("POST", "/v1/chat/completions", data, headers)
    reply = connection.getresponse()
    assert reply.status == status
    assert json.load(reply)["error"]["code"]
    connection.close()


def test_huge_headers_are_refused(scripted: Server) -> None:
    with socket.create_connection(("127.0.0.1", scripted.http_port), timeout=30) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 60_000 + b"\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 431")


def test_request_id_is_echoed_when_plain_and_replaced_when_not(scripted: Server) -> None:
    for given, kept in (("my-id.1", True), ("bad id\u00e9", False), ("x" * 5000, False)):
        request = urllib.request.Request(
            scripted.url + "/v1/models", headers={"x-request-id": given.encode("latin-1").decode("latin-1")}
        )
        with urllib.request.urlopen(request) as reply:
            returned = reply.headers["x-request-id"]
        assert (returned == given) is kept
        assert len(returned) <= 64


def test_scripted_text_comes_through(scripted: Server) -> None:
    _, reply = scripted.post("/v1/chat/completions", chat("say exactly: hello world"))
    assert reply["choices"][0]["message"]["content"] == "Hello world, this is a script."
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_utf8_split_over_tokens_is_never_broken(scripted: Server) -> None:
    events = scripted.stream("/v1/chat/completions", chat("split utf-8"))
    pieces = [c["delta"].get("content") or "" for _, d in events if d != "[DONE]" for c in d["choices"]]
    assert "".join(pieces) == "🦙."
    assert all("\ufffd" not in piece for piece in pieces)


def test_failure_in_the_middle_is_an_error_event(scripted: Server) -> None:
    events = scripted.stream("/v1/chat/completions", chat("break in the middle"))
    assert events[-1][1]["error"]["type"] == "server_error"
    assert all(data != "[DONE]" for _, data in events)


def test_failure_of_a_whole_answer_is_a_500(scripted: Server) -> None:
    status, reply = scripted.post("/v1/chat/completions", chat("break in the middle"))
    assert (status, reply["error"]["type"]) == (500, "server_error")


def test_failing_response_stream_ends_with_failed(scripted: Server) -> None:
    events = scripted.stream("/v1/responses", {"model": MODEL, "input": "break in the middle"})
    assert events[-1][0] == "response.failed"
    assert events[-1][1]["response"]["status"] == "failed"


def test_two_calls_and_only_one_when_parallel_is_off(scripted: Server) -> None:
    for parallel, count in ((True, 2), (False, 1)):
        _, reply = scripted.post(
            "/v1/chat/completions", chat("call two tools", tools=[TOOL], parallel_tool_calls=parallel)
        )
        assert len(reply["choices"][0]["message"]["tool_calls"]) == count
        assert reply["choices"][0]["finish_reason"] == "tool_calls"


def test_cut_tool_call_leaves_no_markup(scripted: Server) -> None:
    _, reply = scripted.post("/v1/chat/completions", chat("cut the call short", tools=[TOOL], max_tokens=4))
    assert reply["choices"][0]["finish_reason"] == "length"
    assert "<tool" not in (reply["choices"][0]["message"]["content"] or "")


def test_legacy_functions_are_honoured(scripted: Server) -> None:
    _, reply = scripted.post("/v1/chat/completions", chat("weather?", functions=[TOOL["function"]]))
    assert reply["choices"][0]["message"]["function_call"]["name"] == "get_weather"
    assert reply["choices"][0]["finish_reason"] == "function_call"


def test_tool_result_is_read(scripted: Server) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
    ]
    _, reply = scripted.post("/v1/chat/completions", {"model": MODEL, "messages": messages, "tools": [TOOL]})
    assert "21 degrees" in reply["choices"][0]["message"]["content"]


def test_cached_tokens_are_reported(scripted: Server) -> None:
    _, reply = scripted.post("/v1/chat/completions", chat("cached prompt"))
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 7


def test_messages_report_the_stop_sequence(scripted: Server) -> None:
    body = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "slow answer"}]}
    _, reply = scripted.post("/v1/messages", body | {"stop_sequences": [" three"]})
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", " three")
    assert reply["content"][0]["text"] == "one two"


def test_messages_errors_use_anthropics_envelope(scripted: Server) -> None:
    status, reply = scripted.post("/v1/messages", {"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
    assert status == 400
    assert reply["type"] == "error"
    assert reply["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in reply["error"]["message"]


def test_hosted_tools_are_refused_by_name(scripted: Server) -> None:
    status, reply = scripted.post("/v1/responses", {"model": MODEL, "input": "x", "tools": [{"type": "web_search"}]})
    assert status == 400
    assert reply["error"]["param"] == "tools[0].type"


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_the_engine(scripted: Server, stream: bool) -> None:
    connections = []
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", scripted.http_port, timeout=30)
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(chat("never finish", stream=stream)),
            {"Content-Type": "application/json"},
        )
        connections.append(connection)
    wait_until(lambda: generations_running(scripted) == 20)
    for connection in connections:
        connection.close()
    wait_until(lambda: generations_running(scripted) == 0)


def test_cancelling_a_background_response_frees_the_engine(scripted: Server) -> None:
    status, queued = scripted.post("/v1/responses", {"model": MODEL, "input": "never finish", "background": True})
    assert (status, queued["status"]) == (200, "queued")
    wait_until(lambda: scripted.get(f"/v1/responses/{queued['id']}")[1]["status"] == "in_progress")
    assert generations_running(scripted) == 1
    assert scripted.post(f"/v1/responses/{queued['id']}/cancel", {})[1]["status"] == "cancelled"
    wait_until(lambda: generations_running(scripted) == 0)
    assert scripted.get(f"/v1/responses/{queued['id']}")[1]["status"] == "cancelled"


def test_documents(scripted: Server) -> None:
    _, document = scripted.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    with urllib.request.urlopen(f"{scripted.url}/docs") as reply:
        assert "text/html" in reply.headers["content-type"]
