"""What public conformance suites and clients once found wrong; each stays right here."""

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
