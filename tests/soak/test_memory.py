"""Minutes of clients that leave, read slowly or never read: memory stays flat and nobody else waits."""

import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from leaving import WAYS
from reading import open_grpc_stream, open_stream, read_bytes
from report import Report
from waiting import wait_until
from wire import generations, greedy_text

from harness import MODEL, Server, serving

pytestmark = pytest.mark.soak
# Process titles of what holds memory.
ROLES = {"replica": "ray::ServeReplica", "engine_core": "VLLM::EngineCore", "worker": "VLLM::Worker"}
SAMPLE_EVERY_S = 2.0
MAX_STEP_TOKENS = 400
LEAVING, SLOW, NEVER, NORMAL = 5, 4, 2, 1
# The median of the last third may exceed that of the middle third by the larger of these two.
TOLERATED_SHARE, TOLERATED_MIB = 0.02, 16.0


def test_memory_is_flat(engine: Server, report: Report, load_s: float, request_timeout_s: float) -> None:
    expected = greedy_text(engine)
    visit_shapes(engine)
    load = Load(engine, load_s)
    samples = sample(engine, load.run())
    growth = {role: parts(values, 3) for role, values in samples.items()}
    asked_s = time.monotonic()
    wait_until(lambda: generations(engine) == 0, timeout_s=2 * request_timeout_s)
    wait_until(lambda: engine.get("/ready")[1]["requests"] == 0, timeout_s=3 * request_timeout_s)
    figures: dict[str, Any] = {
        "load_s": load_s,
        "counts": load.counts,
        "request_timeout_s": request_timeout_s,
        "rss_mib_by_third": growth,
        "rss_mib_by_tenth": {role: parts(values, 10) for role, values in samples.items()},
        "tolerance": f"last third <= middle third + max({TOLERATED_SHARE:.0%}, {TOLERATED_MIB:g} MiB)",
        "normal_request_s": {"median": round(median(load.normal_s), 2), "max": round(max(load.normal_s), 2)},
        "idle_after_s": round(time.monotonic() - asked_s, 1),
    }
    report.record("memory", figures)
    for sock in load.unread:
        sock.close()
    assert not load.failures, load.failures[:5]
    for role, (_, middle, last) in growth.items():
        assert last <= middle + max(middle * TOLERATED_SHARE, TOLERATED_MIB), f"{role} grew: {growth}"
    assert greedy_text(engine) == expected


def test_a_reader_that_never_reads_is_ended(tmp_path: Path, report: Report) -> None:
    """The scripted engine fills every buffer at once; then the answer waits for its reader, until the timeouts."""
    timeout_s = 20
    flags = ["--engine.kind", "scripted", "--limits.request-timeout-s", str(timeout_s), "--http.body-timeout-s", "5"]
    with serving(tmp_path / "log", *flags) as server:
        sockets = [open_stream(server, max_tokens=8000) for _ in range(2)]
        calls = [open_grpc_stream(server, max_tokens=8000) for _ in range(2)]
        started_s = time.monotonic()
        wait_until(lambda: server.get("/ready")[1]["requests"] == len(sockets) + len(calls))
        process = find_process(server, "replica")
        wait_until(lambda: generations(server) == 0)
        engine_s, rss_mib = time.monotonic() - started_s, process.memory_info().rss / 2**20
        wait_until(lambda: server.get("/ready")[1]["requests"] == 0)
        ended_s = time.monotonic() - started_s
        for sock in sockets:
            sock.close()
        for channel, _ in calls:
            channel.close()
        status, _ = server.post("/v1/completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 4})
    figures: dict[str, float] = {
        "clients": len(sockets) + len(calls),
        "request_timeout_s": timeout_s,
        "body_timeout_s": 5,
    }
    figures |= {"engine_idle_after_s": round(engine_s, 1), "ended_after_s": round(ended_s, 1)}
    report.record("never_reading", figures | {"replica_rss_mib": round(rss_mib)})
    assert status == 200


def visit_shapes(server: Server) -> None:
    """A step of every size that the load will have: oneDNN keeps half a megabyte for each of the last 1024 it has seen.

    Four matrix shapes times these sizes fill that cache, so that what grows afterwards is a leak.
    """
    for num_tokens in range(1, MAX_STEP_TOKENS):
        body = {"model": MODEL, "prompt": [1000 + num_tokens] * num_tokens, "max_tokens": 1}
        status, reply = server.post("/v1/completions", body)
        assert status == 200, reply


class Load:
    """Threads of clients; `counts` says what they did, `failures` what went wrong."""

    def __init__(self, server: Server, load_s: float) -> None:
        self.counts = {"left": 0, "slow": 0, "slow_bytes": 0, "never_read": 0, "normal": 0}
        self.failures: list[str] = []
        self.normal_s: list[float] = []
        self.unread: list[Any] = []
        self._server = server
        self._load_s = load_s
        self._lock = threading.Lock()

    def run(self) -> list[threading.Thread]:
        """Start everything; the threads end after the load's time."""
        jobs = [self._leave] * LEAVING + [self._read_slowly] * SLOW + [self._never_read] * NEVER + [self._ask] * NORMAL
        until_s = time.monotonic() + self._load_s
        threads = [
            threading.Thread(target=self._repeat, args=(job, random.Random(n), until_s)) for n, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _repeat(self, job: Callable[[random.Random], None], rng: random.Random, until_s: float) -> None:
        while time.monotonic() < until_s:
            try:
                job(rng)
            except Exception as error:  # noqa: BLE001  a thread's error would be lost
                self.failures.append(f"{job.__name__}: {error!r}")
                return

    def _leave(self, rng: random.Random) -> None:
        leave = rng.choice(WAYS)(self._server)
        time.sleep(rng.choice([0, 0.01, 0.1]))
        leave()
        self._count("left")

    def _read_slowly(self, rng: random.Random) -> None:
        with contextlib.closing(open_stream(self._server)) as sock:
            num_bytes = read_bytes(sock, seconds=rng.uniform(1, 5))
        self._count("slow")
        self._count("slow_bytes", num_bytes)

    def _never_read(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            self.unread.append(open_stream(self._server))
        else:
            self.unread.append(open_grpc_stream(self._server)[0])
        self._count("never_read")
        time.sleep(10)

    def _ask(self, _: random.Random) -> None:
        started_s = time.monotonic()
        body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
        status, reply = self._server.post("/v1/completions", body)
        if status != 200:
            raise RuntimeError(f"a normal request was answered {status}: {reply}")
        self.normal_s.append(time.monotonic() - started_s)
        self._count("normal")

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self.counts[name] += by


def sample(server: Server, threads: list[threading.Thread]) -> dict[str, list[float]]:
    """RSS in MiB of each role while the threads live."""
    processes = {role: find_process(server, role) for role in ROLES}
    samples: dict[str, list[float]] = {role: [] for role in processes}
    while any(thread.is_alive() for thread in threads):
        for role, process in processes.items():
            samples[role].append(process.memory_info().rss / 2**20)
        time.sleep(SAMPLE_EVERY_S)
    return samples


def find_process(server: Server, role: str) -> psutil.Process:
    """The one process of this server that has the role's title."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = [process for process in family if " ".join(process.cmdline()).startswith(ROLES[role])]
    return found


def parts(values: list[float], count: int) -> list[float]:
    """Medians of equal parts of the run; the first of three is warm-up."""
    size = len(values) // count
    return [round(median(values[n * size : (n + 1) * size]), 1) for n in range(count)]
