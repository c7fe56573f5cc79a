"""Starting a server for a measurement, and stopping it."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from burrstone.batching.errors import UsageError

_QUIET_PORTS = (20_000, 32_000)
_START_TIMEOUT_S = 900.0
_STOP_TIMEOUT_S = 60.0
_LOG_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started. `ready`: the path that answers 200 when it may be loaded."""

    command: Sequence[str]
    port: int
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running(name: str, launch: Launch, log: Path) -> Iterator[str]:
    """The server's URL; stopped at the end, with all it started. Raises UsageError when it does not start."""
    with log.open("wb") as output:
        environment = os.environ | dict(launch.environment)
        process = subprocess.Popen(
            launch.command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not _answers(launch.url + launch.ready):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise UsageError(f"{name} did not start:\n{log.read_text(errors='replace')[-_LOG_CHARS:]}")
            time.sleep(0.5)
        yield launch.url
    finally:
        # Not SIGINT: whoever is started in a shell's background ignores it, and so do all it starts.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        # What a server leaves behind would share the cores with the next one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def all_running(launches: Mapping[str, Launch], say: Callable[[str], None]) -> Iterator[None]:
    """All of them, started one after the other."""
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burrstone-bench-")))
        for name, launch in launches.items():
            say(f"starting {name}")
            stack.enter_context(running(name, launch, logs / f"{name}.log".replace(" ", "-")))
        yield


def free_port() -> int:
    """A free port that stays free: outside what the kernel hands out by itself, and what Ray gives its workers."""
    while True:
        port = random.randint(*_QUIET_PORTS)
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False
