"""The gate before a scripted engine, over both wires: whose turn it is, who is refused and for how long, who gives up."""

import contextlib
import http.client
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import yaml
from waiting import wait_until

from burrstone.serving.client import ApiError, Client
from harness import MODEL, Server, serving

KEYS = {name: f"{name}-0123456789abcdef" for name in ("flood", "quiet", "metered", "small")}
SCHEDULER = {
    "admission": "token-bucket",
    "max_running": 2,
    "tenants": {
        "flood": {"weight": 1},
        "quiet": {"weight": 1, "ttft_s": 5},
        "metered": {"tokens_per_s": 60, "burst_tokens": 80},
        "small": {"max_concurrent": 1},
    },
}
SCRIPT = {
    "rules": [
        {"match": "hold the line", "text": "one two three four five six", "hang_after": 3},
        {"match": "", "text": "Here you are."},
    ]
}


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two seats, four tenants."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "script.yaml").write_text(yaml.safe_dump(SCRIPT))
    config = {
        "engine": {"kind": "scripted", "script": str(folder / "script.yaml")},
        "replica": {"drain_grace_s": 0},
        "observability": {"metrics_public": True},
        "scheduler": SCHEDULER,
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    environ = {"BURRSTONE_API_KEYS": ",".join(f"{name}:{key}" for name, key in KEYS.items())}
    with serving(folder / "log", "--config", str(folder / "serve.yaml"), environ=environ) as server:
        yield server


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 20} | fields


class Asked:
    """A chat request on its own connection, sent and not waited for."""

    def __init__(self, server: Server, tenant: str, text: str, **fields: Any) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEYS[tenant]}"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body(text, **fields)), headers)

    def answer(self) -> tuple[int, Any, Any]:
        """(status, JSON body, headers), once it is there."""
        with contextlib.closing(self._connection), self._connection.getresponse() as reply:
            return reply.status, json.load(reply), reply.headers

    def leave(self) -> None:
        self._connection.close()


def sample(server: Server, name: str, **labels: str) -> float:
    """One metric; 0 before it was ever counted."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    for line in lines:
        if re.match(rf"{re.escape(name)}[ {{]", line) and all(
            f'{key}="{text}"' in line for key, text in labels.items()
        ):
            return float(line.rpartition(" ")[2])
    return 0.0


def waiting(server: Server, tenant: str) -> float:
    return sample(server, "burrstone_gate_waiting", **{"class": tenant})


@contextlib.contextmanager
def flooded(server: Server, num_waiting: int) -> Iterator[list[Asked]]:
    """The flooding tenant holds both seats for good, and some more of its requests wait."""
    before = sample(server, "burrstone_gate_wait_seconds_count", **{"class": "flood"})
    held = [Asked(server, "flood", "hold the line", stream=True) for _ in range(2)]
    wait_until(lambda: sample(server, "burrstone_gate_wait_seconds_count", **{"class": "flood"}) == before + 2)
    held += [Asked(server, "flood", "hold the line", stream=True) for _ in range(num_waiting)]
    wait_until(lambda: waiting(server, "flood") == num_waiting)
    try:
        yield held
    finally:
        for one in held:
            one.leave()
        wait_until(lambda: sample(server, "burrstone_generations_running") == 0)


def test_a_flood_delays_nobody_else(gated: Server) -> None:
    """One seat comes free: it goes to the newcomer of the other tenant, before everything that the flood sent earlier."""
    with flooded(gated, num_waiting=8) as held:
        quiet = Asked(gated, "quiet", "hello")
        wait_until(lambda: waiting(gated, "quiet") == 1)
        held[0].leave()
        status, reply, _ = quiet.answer()
        assert status == 200 and reply["choices"][0]["message"]["content"] == "Here you are."
        wait_until(lambda: waiting(gated, "flood") == 7)


def test_a_flood_delays_nobody_else_over_grpc(gated: Server) -> None:
    with (
        flooded(gated, num_waiting=8) as held,
        Client(gated.grpc_address, api_key=KEYS["quiet"]) as client,
        ThreadPoolExecutor() as pool,
    ):
        quiet = pool.submit(lambda: list(client.stream_chat(**body("hello"), timeout_s=60.0)))
        wait_until(lambda: waiting(gated, "quiet") == 1)
        held[0].leave()
        assert "".join(chunk.choices[0].delta.content for chunk in quiet.result() if chunk.choices) == "Here you are."


def test_who_leaves_the_queue_frees_the_place(gated: Server) -> None:
    with flooded(gated, num_waiting=3) as held:
        for left, one in ((2, held[3]), (1, held[2]), (0, held[4])):
            one.leave()
            wait_until(lambda left=left: waiting(gated, "flood") == left)  # type: ignore[misc]
        assert sample(gated, "burrstone_generations_running") == 2
        held[1].leave()
        assert Asked(gated, "quiet", "hello").answer()[0] == 200


def test_a_deadline_that_passes_in_the_queue(gated: Server) -> None:
    counted = {"wire": "grpc", "operation": "CreateChatCompletion", "outcome": "deadline_exceeded"}
    before = sample(gated, "burrstone_requests_total", **counted)
    with flooded(gated, num_waiting=0), Client(gated.grpc_address, api_key=KEYS["quiet"]) as client:
        with pytest.raises(ApiError) as refused:
            client.chat(**body("hello"), timeout_s=0.5)
        assert refused.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: sample(gated, "burrstone_requests_total", **counted) == before + 1)
        assert waiting(gated, "quiet") == 0


def test_a_tenants_own_bound_holds_while_seats_are_free(gated: Server) -> None:
    first = Asked(gated, "small", "hold the line", stream=True)
    wait_until(lambda: sample(gated, "burrstone_generations_running") == 1)
    second = Asked(gated, "small", "hello")
    wait_until(lambda: waiting(gated, "small") == 1)
    assert Asked(gated, "quiet", "hello").answer()[0] == 200
    first.leave()
    assert second.answer()[0] == 200


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_rate_that_is_used_up_and_a_retry_after_that_holds(gated: Server, wire: str) -> None:
    wait_until(lambda: sample(gated, "burrstone_generations_running") == 0)
    held = Asked(gated, "metered", "hold the line", stream=True)
    wait_until(lambda: sample(gated, "burrstone_generations_running") == 1)
    before = sample(gated, "burrstone_generations_refused_total", **{"class": "metered", "reason": "token_rate"})
    with Client(gated.grpc_address, api_key=KEYS["metered"]) as client:
        if wire == "http":
            status, reply, headers = Asked(gated, "metered", "hello").answer()
            assert (status, reply["error"]["code"]) == (429, "rate_limit_exceeded")
            retry_after_s = float(headers["retry-after"])
        else:
            with pytest.raises(ApiError) as refused:
                client.chat(**body("hello"), timeout_s=60.0)
            assert refused.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
            retry_after_s = refused.value.retry_after_s or 0.0
        assert retry_after_s > 0
        time.sleep(retry_after_s)  # the time it was told, and no more
        if wire == "http":
            assert Asked(gated, "metered", "hello").answer()[0] == 200
        else:
            assert client.chat(**body("hello"), timeout_s=60.0).choices
    held.leave()
    refusals = sample(gated, "burrstone_generations_refused_total", **{"class": "metered", "reason": "token_rate"})
    assert refusals == before + 1


@pytest.mark.parametrize(
    "field",
    [
        {"priority": -1},
        {"session_id": "quiet/1"},
        {"vllm_xargs": {"burrstone": "x", "tenant": "quiet"}},
        {"cache_salt": "tenant:quiet"},
    ],
    ids=lambda field: next(iter(field)),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_no_body_sets_what_the_scheduler_is_told(gated: Server, path: str, field: dict[str, Any]) -> None:
    asked = {
        "/v1/chat/completions": body("hello"),
        "/v1/completions": {"model": MODEL, "prompt": "hello", "max_tokens": 5},
        "/v1/responses": {"model": MODEL, "input": "hello"},
        "/v1/messages": body("hello"),
    }[path]
    headers = {"Authorization": f"Bearer {KEYS['quiet']}"}
    status, reply = gated.request("POST", path, asked | field, headers)
    assert status == 400
    assert next(iter(field)) in reply["error"]["message"]
