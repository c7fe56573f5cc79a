"""`burrstone serve` as a terminal starts it, and everything that grows out of it: found by a mark in its environment."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from waiting import wait_until

from burrstone.bench.peers.servers import free_port
from harness import Server

_MARK = "BURRSTONE_TEST_MARK"


@dataclass(frozen=True)
class Process:
    """One process of a server. `title` is its command line, which Ray replaces by what the process is for."""

    pid: int
    title: str


@dataclass(frozen=True)
class Family(Server):
    """A server in a process group of its own, as the shell makes one for every command."""

    mark: str

    def processes(self) -> list[Process]:
        """Every live process that inherited this server's environment."""
        return [Process(process.pid, " ".join(process.cmdline())) for process in _alive(self.mark)]

    def find(self, word: str) -> list[int]:
        """Process ids by a word of the title."""
        return [process.pid for process in self.processes() if word in process.title]

    def ray_logs(self) -> Path:
        """Ray's log folder of this run."""
        found = [title.partition("--log_dir=")[2].split()[0] for title in self._titles() if "--log_dir=" in title]
        return Path(found[0])

    def listeners(self) -> set[tuple[str, str, int]]:
        """(title's first word, address, port) of every TCP socket that one of the processes listens on."""
        pids = {process.pid: process.title for process in self.processes()}
        return {
            (pids[found.pid].split(" ")[0], found.laddr.ip.removeprefix("::ffff:"), found.laddr.port)
            for found in psutil.net_connections("tcp")
            if found.status == psutil.CONN_LISTEN and found.pid in pids
        }

    def ready(self) -> bool:
        """/ready says so; False while nobody listens."""
        with contextlib.suppress(OSError, ValueError):
            return bool(self.get("/ready")[0] == 200)
        return False

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: the signal goes to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)

    def exit_code(self, timeout_s: float = 120.0) -> int:
        return self.process.wait(timeout_s)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_gone(self) -> None:
        """Until no process of it is left."""
        wait_until(lambda: not _alive(self.mark))

    def _titles(self) -> list[str]:
        return [process.title for process in self.processes()]


@contextlib.contextmanager
def launched(
    log: Path, *flags: str, environ: dict[str, str] | None = None, directory: Path | None = None
) -> Iterator[Family]:
    """`burrstone serve FLAGS` on free ports, just started. Whatever of it is left at the end is killed."""
    mark = uuid.uuid4().hex
    http_port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "burrstone.serving.cli.main", "serve"]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port), *flags]
    with log.open("wb") as output:
        environment = os.environ | (environ or {}) | {_MARK: mark}
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=directory, process_group=0
        )
    try:
        yield Family(http_port, grpc_port, process, log, mark)
    finally:
        for left in _alive(mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


def wait_served(server: Family, timeout_s: float = 300.0) -> None:
    """Until the command has printed its greeting."""
    wait_until(lambda: server.process.poll() is not None or "burrstone serves" in server.output(), timeout_s)
    assert server.process.poll() is None, server.output()[-4000:]


def closed(port: int) -> bool:
    """Nobody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def _alive(mark: str) -> list[psutil.Process]:
    """Read as bytes: a process that renames itself leaves a hole in its environment, at which psutil stops reading."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            if wanted in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
