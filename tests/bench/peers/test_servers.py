"""Starting and stopping servers: ready ones, ones that fail, ones that will not go."""

import os
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from burrstone.batching.errors import UsageError
from burrstone.bench.peers.servers import Launch, all_running, free_port, running

_HTTP = "import http.server, signal; {more}http.server.test(http.server.SimpleHTTPRequestHandler, port={port})"


def launch(more: str = "") -> Launch:
    port = free_port()
    return Launch([sys.executable, "-c", _HTTP.format(port=port, more=more)], port, "/")


def test_it_is_up_inside_and_gone_after(tmp_path: Path) -> None:
    one, other = launch(), launch()
    said: list[str] = []
    with all_running({"one": one, "other": other}, said.append):
        assert said == ["starting one", "starting other"]
    with running("again", one, tmp_path / "log") as url:
        assert url == f"http://127.0.0.1:{one.port}"


def test_one_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    broken = Launch([sys.executable, "-c", "raise SystemExit('no weights here')"], free_port(), "/")
    with (
        pytest.raises(UsageError, match="broken did not start:\nno weights here"),
        running("broken", broken, tmp_path / "log"),
    ):
        pass


def test_what_it_started_is_gone_too(tmp_path: Path) -> None:
    child = tmp_path / "child"
    spawn = f"import subprocess; open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid)); "
    with running("parent", launch(spawn), tmp_path / "log"):
        pid = int(child.read_text())
        assert Path(f"/proc/{pid}").exists()
    wait_until(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
