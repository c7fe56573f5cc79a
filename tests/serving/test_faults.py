"""What happens when something dies, is stopped, or cannot start: clean errors, a new replica, and nothing left behind."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml
from processes import Family, closed, launched, wait_served
from waiting import generations_running, wait_until

from burrstone.serving.client import ApiError, Client
from harness import MODEL, SMALL_FLAGS

Json = dict[str, Any]
ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
SCRIPT = {
    "rules": [
        {"match": "take your time", "text": "word " * 15, "delay_ms": 200},
        {"match": "never finish", "text": "one two three four five", "hang_after": 3},
        {"match": "die of this", "text": "one two three four five", "die_after": 2},
    ]
}


def chat(text: str, **fields: Any) -> Json:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


class Asking(threading.Thread):
    """One request on a thread of its own. `outcome`: how it ended, as its client sees it; `begun`: the answer has."""

    def __init__(self, ask: Callable[[threading.Event], str]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.begun = threading.Event()
        self.outcome = "still waiting"
        self.start()

    def run(self) -> None:
        self.outcome = self._ask(self.begun)

    def result(self, timeout_s: float = 60.0) -> str:
        self.join(timeout_s)
        return self.outcome


def over_http(
    server: Family, body: Json, headers: dict[str, str] | None = None, begun: threading.Event | None = None
) -> str:
    """`done`, the error's code, or `cut` when the connection broke. A stream's error is its last event's."""
    url, given = f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"} | (headers or {})
    request = urllib.request.Request(url, json.dumps(body).encode(), given)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            lines = [line.decode().strip() for line in noted(reply, begun)]
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {json.load(error)['error']['code']} retry-after {error.headers['retry-after']}"
    except (OSError, http.client.HTTPException):
        return "cut"
    events = [line for line in lines if line]
    if not body.get("stream") or events[-1] == "data: [DONE]":
        return "done"
    last = json.loads(events[-1].removeprefix("data: "))
    return str(last["error"]["code"]) if "error" in last else "cut"


def noted(answer: Iterable[Any], begun: threading.Event | None) -> Iterator[Any]:
    """The same, telling when the first part comes."""
    for part in answer:
        if begun is not None:
            begun.set()
        yield part


def over_grpc(server: Family, body: Json, api_key: str | None = None, begun: threading.Event | None = None) -> str:
    """`done` or the status."""
    with Client(server.grpc_address, api_key=api_key) as client:
        try:
            for _ in noted(client.stream_chat(**body, timeout_s=120.0), begun):
                pass
        except ApiError as error:
            return error.status.name
    return "done"


def ask_all(server: Family, text: str) -> dict[str, Asking]:
    """The same request streamed over both wires, and unary."""
    return {
        "stream": Asking(lambda begun: over_http(server, chat(text, stream=True), begun=begun)),
        "unary": Asking(lambda _: over_http(server, chat(text))),
        "grpc": Asking(lambda begun: over_grpc(server, chat(text), begun=begun)),
    }


def wait_streaming(server: Family, asking: Iterable[Asking], headers: dict[str, str] | None = None) -> None:
    """Until every request is in the engine and every stream has begun."""
    asking = list(asking)
    wait_until(lambda: generations_running(server, headers) == len(asking))
    wait_until(lambda: sum(not one.begun.is_set() for one in asking) <= 1)


# The real engine: one server that survives three deaths in turn.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    folder = tmp_path_factory.mktemp("real")
    keys = {"BURRSTONE_API_KEYS": f"alice:{ALICE},bob:{BOB}"}
    # Without compilation it starts, and starts again, sooner.
    flags = [*SMALL_FLAGS, "--replica.health-check-period-s", "0.5", "--engine.enforce-eager", "true"]
    with launched(folder / "log", *flags, environ=keys) as server:
        wait_served(server)
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def greedy(server: Family, text: str, key: str, **fields: Any) -> Json:
    body = chat(text, temperature=0, **fields)
    status, reply = server.request("POST", "/v1/chat/completions", body, bearer(key))
    assert status == 200, reply
    return dict(reply)


def cached_tokens(reply: Json) -> int:
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.engine
def test_tenants_share_no_prefix_cache(real: Family) -> None:
    long = " ".join(f"word{number}" for number in range(300))
    first, again, others = (greedy(real, long, key, max_tokens=1) for key in (ALICE, ALICE, BOB))
    assert cached_tokens(first) == 0
    assert cached_tokens(again) > 0
    assert cached_tokens(others) == 0


@pytest.mark.engine
@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "VLLM::Worker", "ray::ServeReplica"])
def test_a_killed_process_is_replaced(real: Family, victim: str) -> None:
    before = greedy(real, "Say hello.", ALICE, max_tokens=24)["choices"][0]["message"]["content"]
    [replica] = real.find("ray::ServeReplica")
    old = [replica, *(child.pid for child in psutil.Process(replica).children(recursive=True))]
    endless = chat("Count to a thousand.", max_tokens=1900, ignore_eos=True, stream=True)
    asking = [Asking(lambda begun: over_http(real, endless, bearer(ALICE), begun)) for _ in range(3)]
    unary = endless | {"stream": False}
    asking.append(Asking(lambda _: over_http(real, unary, bearer(BOB))))
    over_wire = chat("Count to a thousand.", max_tokens=1900, ignore_eos=True)
    asking += [Asking(lambda begun: over_grpc(real, over_wire, BOB, begun)) for _ in range(2)]
    wait_streaming(real, asking, bearer(ALICE))
    [killed] = [pid for pid in old if victim in title(pid)]
    os.kill(killed, signal.SIGKILL)
    outcomes = [one.result() for one in asking]
    if victim == "ray::ServeReplica":
        assert outcomes == ["cut"] * 4 + ["UNAVAILABLE"] * 2
    else:
        assert outcomes == ["overloaded"] * 3 + ["503 overloaded retry-after 10"] + ["UNAVAILABLE"] * 2
    wait_until(lambda: not real.ready())
    wait_until(lambda: real.ready() and replica not in real.find("ray::ServeReplica"), 240)
    after = greedy(real, "Say hello.", ALICE, max_tokens=24)["choices"][0]["message"]["content"]
    assert after == before
    with Client(real.grpc_address, api_key=ALICE) as client:
        assert client.list_models().data
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in old))


def title(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())


# The scripted engine: stops and failed starts.


@pytest.fixture
def scripted_flags(tmp_path: Path) -> list[str]:
    script = tmp_path / "script.yaml"
    script.write_text(yaml.safe_dump(SCRIPT))
    return ["--engine.kind", "scripted", "--engine.script", str(script)]


def test_sigterm_lets_running_streams_finish(tmp_path: Path, scripted_flags: list[str]) -> None:
    with launched(tmp_path / "log", *scripted_flags, "--replica.drain-grace-s", "60") as server:
        wait_served(server)
        assert_port_is_taken(server)
        asking = ask_all(server, "take your time")
        wait_streaming(server, asking.values())
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not server.ready())
        assert over_http(server, chat("more")) == "503 overloaded retry-after 5"
        with Client(server.grpc_address) as client, pytest.raises(ApiError) as refused:
            client.list_models()
        assert refused.value.status is grpc.StatusCode.UNAVAILABLE
        assert refused.value.retry_after_s == 5.0
        assert {name: one.result() for name, one in asking.items()} == dict.fromkeys(asking, "done")
        assert server.exit_code() == 0
        assert server.output().rstrip().endswith("Stopped.")
        assert_nothing_left(server)


def assert_port_is_taken(server: Family) -> None:
    """A second server on one of the ports is refused before it starts anything."""
    for http_port, grpc_port, flag in (
        (server.http_port, 0, "--http-port"),
        (0, server.grpc_port, "--grpc-port"),
    ):
        command = [sys.executable, "-m", "burrstone.serving.cli.main", "serve"]
        command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "in use" in done.stderr and flag in done.stderr
        assert "Ray" not in done.stderr


def test_engine_death_and_then_a_grace_period_that_ends(tmp_path: Path, scripted_flags: list[str]) -> None:
    flags = [*scripted_flags, "--replica.drain-grace-s", "1", "--replica.health-check-period-s", "0.5"]
    with launched(tmp_path / "log", *flags) as server:
        wait_served(server)
        [replica] = server.find("ray::ServeReplica")
        assert over_http(server, chat("die of this", stream=True)) == "overloaded"
        wait_until(lambda: not server.ready())
        wait_until(lambda: server.ready() and server.find("ray::ServeReplica") != [replica])
        assert over_http(server, chat("Hi")) == "done"

        asking = ask_all(server, "never finish")
        wait_streaming(server, asking.values())
        server.interrupt()
        assert {name: one.result() for name, one in asking.items()} == {
            "stream": "overloaded",
            "unary": "503 overloaded retry-after 5",
            "grpc": "UNAVAILABLE",
        }
        assert server.exit_code() == 1
        assert "some requests were ended" in server.output()
        assert_nothing_left(server)


def test_second_ctrl_c_stops_at_once(tmp_path: Path, scripted_flags: list[str]) -> None:
    with launched(tmp_path / "log", *scripted_flags, "--replica.drain-grace-s", "600") as server:
        wait_served(server)
        asking = ask_all(server, "never finish")
        wait_streaming(server, asking.values())
        server.interrupt()
        wait_until(lambda: "press Ctrl-C again" in server.output())
        server.interrupt()
        assert server.exit_code() == 130
        assert "Traceback" not in server.output()
        assert all(one.result() not in ("done", "still waiting") for one in asking.values())
        assert_nothing_left(server)


@pytest.mark.parametrize("step", ["starting Ray Serve", "starting the engine's process"])
def test_ctrl_c_during_the_start(tmp_path: Path, scripted_flags: list[str], step: str) -> None:
    with launched(tmp_path / "log", *scripted_flags) as server:
        wait_until(lambda: step in server.output())
        server.interrupt()
        assert server.exit_code() == 130
        assert "Traceback" not in server.output()
        assert_nothing_left(server)


def test_a_start_that_fails_names_the_cause(tmp_path: Path, scripted_flags: list[str]) -> None:
    with launched(tmp_path / "log", *scripted_flags, "--engine.tool-call-parser", "no-such-parser") as server:
        assert server.exit_code() == 1
        [cause] = [line for line in server.output().splitlines() if "the engine did not start" in line]
        assert "no-such-parser" in cause
        assert_nothing_left(server)


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (["{folder}/absent"], "has no config.json"),
        (["{folder}"], "has no config.json"),
        (["--engine.kv-cache-gib", "1000000"], "engine.kv_cache_gib asks for 1e+06 GiB"),
        (["--engine.kv-cache-dtype", "int8_per_token_head"], "engine.kv_cache_dtype"),
        (["--engine.tensor-parallel-size", "4096"], "engine.tensor_parallel_size is 4096"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(tmp_path: Path, flags: list[str], cause: str) -> None:
    with launched(tmp_path / "log", *(flag.format(folder=tmp_path) for flag in flags)) as server:
        assert server.exit_code() == 2
        assert cause in server.output()
        assert "starting Ray" not in server.output()
        assert_nothing_left(server)


def assert_nothing_left(server: Family) -> None:
    server.wait_gone()
    assert closed(server.http_port)
    assert closed(server.grpc_port)
