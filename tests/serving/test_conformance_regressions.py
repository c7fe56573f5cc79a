"""What public conformance suites and clients once found wrong; each stays right here."""

import http.client
import json

import pytest

from harness import MODEL, Server

LONG = "word " * 40_000


@pytest.mark.parametrize("path", ["/v1/responses/compact", "/v1/responses/input_tokens"])
def test_openais_routes_that_are_not_offered_are_404(scripted: Server, path: str) -> None:
    status, reply = scripted.post(path, {"model": MODEL, "input": "x"})
    assert (status, reply["error"]["code"]) == (404, "unknown_url")


def test_overflow_is_recognisable_by_its_text_alone(scripted: Server) -> None:
    messages = [{"role": "user", "content": LONG}]
    _, chat = scripted.post("/v1/chat/completions", {"model": MODEL, "messages": messages})
    assert chat["error"]["message"].startswith("This model's maximum context length is")
    assert "context_length_exceeded" in chat["error"]["message"]
    _, message = scripted.post("/v1/messages", {"model": MODEL, "max_tokens": 1, "messages": messages})
    assert message["error"]["message"].startswith("prompt is too long")


def test_answers_name_the_model_that_was_asked_for(scripted: Server) -> None:
    messages = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": messages, "max_tokens": 4}),
    ):
        _, reply = scripted.post(path, body | {"model": "default"})
        assert reply["model"] == "default", path
    for _, data in scripted.stream("/v1/chat/completions", {"model": "default", "messages": messages}):
        assert data == "[DONE]" or data["model"] == "default"


def test_sdks_do_not_repeat_what_the_model_cannot_do(scripted: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", scripted.http_port, timeout=30)
    body = json.dumps({"model": MODEL, "input": "x"})
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("x-should-retry")) == (501, "false")
    connection.close()
