"""Running the real `burrstone serve` command in tests, and talking to it with nothing but the standard library."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burrstone.bench.peers.servers import free_port

START_TIMEOUT_S = 900
SCRIPT = Path(__file__).parent.parent / "data" / "script.yaml"
MODEL = "smollm2-135m-instruct"
SMALL_FLAGS = ["--limits.default-max-tokens", "64", "--engine.max-model-len", "2048"]
EXACT_FLAGS = [*SMALL_FLAGS, "--engine.dtype", "float32", "--engine.enforce-eager", "true"]


@dataclass(frozen=True)
class Server:
    """A `burrstone serve` process of our own."""

    http_port: int
    grpc_port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def get(self, path: str) -> tuple[int, Any]:
        return self.request("GET", path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.request("POST", path, body)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, JSON body)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"} | (headers or {}), method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def stream(self, path: str, body: Any, headers: dict[str, str] | None = None) -> list[tuple[str | None, Any]]:
        """(event name, data) of every server-sent event; data is "[DONE]" or decoded JSON."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body | {"stream": True}).encode(),
            {"Content-Type": "application/json"} | (headers or {}),
        )
        events: list[tuple[str | None, Any]] = []
        with urllib.request.urlopen(request, timeout=120) as reply:
            name = None
            for raw in reply:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    events.append((name, data if data == "[DONE]" else json.loads(data)))
                    name = None
        return events


@contextlib.contextmanager
def serving(log: Path, *flags: str, environ: dict[str, str] | None = None) -> Iterator[Server]:
    """`burrstone serve FLAGS` on free ports, ready; stopped as Ctrl-C stops it."""
    http_port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "burrstone.serving.cli.main", "serve", *flags]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | (environ or {}))
    server = Server(http_port, grpc_port, process, log)
    try:
        wait_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(server: Server) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(OSError, ValueError):
            if server.get("/ready")[0] == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not become ready:\n{server.log.read_text()[-4000:]}")
