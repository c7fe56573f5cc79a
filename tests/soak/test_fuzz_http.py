"""Fuzzed HTTP: schemathesis on our own OpenAPI document, and good requests with something hostile in them."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from fuzzing import encoded, fuzz, nearly_good
from hypothesis import strategies as st
from report import Report
from waiting import wait_until
from wire import generations, greedy_text, http_complaint

from harness import MODEL, Server

pytestmark = pytest.mark.soak
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_HEADERS = {"Content-Type": "application/json"}


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@pytest.mark.parametrize(("kind", "by_schema", "by_hand"), [("scripted", 2400, 2400), ("engine", 600, 600)])
def test_fuzzed_http(
    request: pytest.FixtureRequest, report: Report, session: requests.Session, kind: str, by_schema: int, by_hand: int
) -> None:
    server: Server = request.getfixturevalue(kind)
    before = greedy_text(server)
    counts: dict[int, int] = {}

    def send_case(drawn: tuple[Any, int]) -> str | None:
        case = aimed(*drawn)
        reply = case.call(base_url=server.url, session=session, timeout=120)
        return judge(case.path, reply, case.body)

    def send_body(drawn: tuple[str, Any]) -> str | None:
        path, body = drawn
        return judge(path, session.post(server.url + path, data=encoded(body), headers=_HEADERS, timeout=120), body)

    def judge(path: str, reply: Any, body: Any) -> str | None:
        status = reply.status_code
        counts[status] = counts.get(status, 0) + 1
        if "x-request-id" not in reply.headers:
            return f"{path}: no x-request-id"
        is_stream = "text/event-stream" in str(reply.headers.get("content-type"))
        complaint = http_complaint(path, status, reply.content, is_stream=is_stream)
        return None if complaint is None else f"{path}: {complaint}\n    {str(body)[:1500]}"

    sent, complaints = 0, []
    for strategy, send, examples in ((cases(server), send_case, by_schema), (nearly_good(), send_body, by_hand)):
        done, found = fuzz(strategy, send, examples)
        sent += done
        complaints += found
    asked_s = time.monotonic()
    wait_until(lambda: generations(server) == 0)
    settled_s = time.monotonic() - asked_s
    report.record(
        f"fuzz_http_{kind}",
        {
            "requests": sent,
            "by_status": {str(status): counts[status] for status in sorted(counts)},
            "complaints": len(complaints),
            "idle_after_s": round(settled_s, 2),
        },
    )
    assert not complaints, "\n".join(complaints[:40])
    assert server.get("/ready")[0] == 200
    assert greedy_text(server) == before


def cases(server: Server) -> st.SearchStrategy[tuple[Any, int]]:
    """(schemathesis case, die) over every operation, following the schema and breaking it."""
    import schemathesis  # only `make soak` installs it

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]
    strategies: list[st.SearchStrategy[Any]] = []
    for operation in operations:
        # What has a body is where the code is.
        times = 4 if operation.method == "post" and operation.body else 1
        strategies += [operation.as_strategy(generation_mode=mode) for mode in modes for _ in range(times)]
    return st.tuples(st.one_of(strategies), st.integers(0, 9))


def aimed(case: Any, die: int) -> Any:
    """The case, mostly with a model that exists and a short answer, so that it gets past the first check."""
    body = case.body
    if isinstance(body, dict) and die:
        if "model" in body:
            body["model"] = MODEL
        for name in _LIMITS:
            if isinstance(body.get(name), int) and die != 1:
                body[name] = 16 if name == "max_output_tokens" else die // 3 + 1
    return case
