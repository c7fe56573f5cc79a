"""Waiting for conditions, and the one most waited for."""

import time
import urllib.request
from collections.abc import Callable

from harness import Server


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return once the condition holds; fail when it does not within the timeout."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.02)


def generations_running(server: Server, headers: dict[str, str] | None = None) -> int:
    """Generations inside the engine or its queue, as /metrics tells."""
    request = urllib.request.Request(f"{server.url}/metrics", headers=headers or {})
    with urllib.request.urlopen(request, timeout=30) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith("burrstone_generations_running "):
                return int(float(line.split()[1]))
    raise AssertionError("no metric")
