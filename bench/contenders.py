"""The servers that a comparison loads: bare vLLM and burrstone, same engine arguments, same environment."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from burrstone.serving.config import ServeConfig
from burrstone.serving.engine.models import resolve_model
from burrstone.serving.hardware import detect
from burrstone.serving.launch import engine_environment

MODEL = "default"
MAX_MODEL_LEN = 2048
_KV_GIB = 1.0
_QUIET_PORTS = (20_000, 32_000)
_START_TIMEOUT_S = 900.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Contenders:
    """Where they listen."""

    bare_port: int
    http_port: int
    grpc_port: int


@contextlib.contextmanager
def contenders(say: Callable[[str], None]) -> Iterator[Contenders]:
    """Both running and ready, on free loopback ports; stopped at the end. Started one after the other."""
    ports = Contenders(*(free_port() for _ in range(3)))
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burrstone-bench-")))
        for name, (command, environment, ready) in _commands(ports, say).items():
            say(f"starting {name}")
            stack.enter_context(_running(name, command, environment, logs / f"{name}.log".replace(" ", "-"), ready))
        yield ports


@contextlib.contextmanager
def served(models: dict[str, str], say: Callable[[str], None]) -> Iterator[dict[str, int]]:
    """Each model (name -> folder) behind a burrstone of its own, computing in bfloat16; name -> HTTP port. One after the other."""
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burrstone-bench-")))
        ports = {}
        for name, model in models.items():
            say(f"starting {name}")
            ports[name], grpc_port = free_port(), free_port()
            command, ready = _serve_command(model, ports[name], grpc_port), f"http://127.0.0.1:{ports[name]}/ready"
            command += ["--engine.dtype", "bfloat16"]
            stack.enter_context(_running(name, command, {}, logs / f"{name}.log", ready))
        yield ports


def _commands(ports: Contenders, say: Callable[[str], None]) -> dict[str, tuple[list[str], dict[str, str], str]]:
    """Name -> (command, environment, URL that answers 200 when ready)."""
    config = ServeConfig()
    model = resolve_model(config.model, config.cache_dir.expanduser(), say)
    recipe = dict(engine_environment(config, detect()))
    bare = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", model.path]
    bare += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(ports.bare_port)]
    bare += ["--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory-bytes", str(int(_KV_GIB * 2**30))]
    bare += ["--seed", "0", "--enable-prompt-tokens-details", "--max-logprobs", "20", "--disable-uvicorn-access-log"]
    return {
        "bare vLLM": (bare, recipe, f"http://127.0.0.1:{ports.bare_port}/health"),
        "burrstone": (
            _serve_command(config.model, ports.http_port, ports.grpc_port),
            {},
            f"http://127.0.0.1:{ports.http_port}/ready",
        ),
    }


def _serve_command(model: str, http_port: int, grpc_port: int) -> list[str]:
    ours = [sys.executable, "-m", "burrstone.serving.cli.main", "serve", model]
    ours += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    return [*ours, "--max-model-len", str(MAX_MODEL_LEN), "--engine.kv-cache-gib", str(_KV_GIB)]


@contextlib.contextmanager
def _running(name: str, command: list[str], environment: dict[str, str], log: Path, ready: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | environment, start_new_session=True
        )
    try:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{name} did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> int:
    """A free port that stays free: outside what the kernel hands out by itself, and what Ray gives its workers."""
    while True:
        port = random.randint(*_QUIET_PORTS)
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
