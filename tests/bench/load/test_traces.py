"""Traces come whole and right, or not at all; every refusal says what to do."""

import argparse
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.traces import read_trace
from burrstone.bench.load.traces import TRACES, Trace, add_parser, fetch, trace_of

ROWS = "".join(f"2023-11-16 18:15:{second:02}.0,{100 + second},20\n" for second in range(60))
CSV = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{ROWS}".encode()
SHA256 = hashlib.sha256(CSV).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole.csv is all of it, /cut.csv announces more than it sends; anything else is absent."""

    def do_GET(self) -> None:
        if self.path not in ("/whole.csv", "/cut.csv"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CSV)))
        self.end_headers()
        self.wfile.write(CSV if self.path == "/whole.csv" else CSV[:-100])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def trace(url: str, sha256: str | None = SHA256) -> Trace:
    return Trace("some", "about it", "CC0", url, "some.csv", len(CSV), sha256)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_trace_is_fetched_and_can_be_offered(base: str, tmp_path: Path, sha256: str | None) -> None:
    file = fetch(trace(f"{base}/whole.csv", sha256), tmp_path / "new" / "folder")
    assert file.read_bytes() == CSV and len(read_trace(file)) == 60
    assert left_in(file.parent) == ["some.csv"]


def test_what_is_there_and_right_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_bytes(CSV)
    assert fetch(trace("http://127.0.0.1:9/gone.csv"), tmp_path).read_bytes() == CSV


@pytest.mark.parametrize(
    ("path", "sha256", "told"),
    [
        ("/cut.csv", SHA256, f"ended after {len(CSV) - 100:,} of {len(CSV):,} bytes"),
        ("/cut.csv", None, "try again"),
        ("/whole.csv", "0" * 64, f"its SHA-256 is {SHA256}"),
        ("/none.csv", None, "curl -L -o some.csv"),
    ],
)
def test_what_is_not_right_leaves_no_file(base: str, tmp_path: Path, path: str, sha256: str | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        fetch(trace(base + path, sha256), tmp_path)
    assert left_in(tmp_path) == []


def test_a_failure_keeps_what_was_there(base: str, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("older")
    with pytest.raises(UsageError, match="nothing was kept"):
        fetch(trace(f"{base}/cut.csv"), tmp_path)
    assert (tmp_path / "some.csv").read_text() == "older" and left_in(tmp_path) == ["some.csv"]


def test_offline_the_address_and_the_way_by_hand_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        fetch(trace("http://127.0.0.1:9/some.csv"), tmp_path)
    assert "http://127.0.0.1:9/some.csv cannot be downloaded" in str(refused.value)
    assert f"put it to {tmp_path / 'some.csv'}" in str(refused.value)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        fetch(trace("http://127.0.0.1:9/some.csv"), tmp_path / "file")


def test_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean azure-conv"):
        trace_of("azure-convs")
    with pytest.raises(UsageError, match="tar -cJf"):
        fetch(trace_of("servegen-reasoning"), tmp_path)
    assert all(one.url.startswith("https://") for one in TRACES)
    assert len({one.file for one in TRACES}) == len(TRACES)


def test_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> int:
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers())
        arguments = parser.parse_args(["traces", *words])
        code: int = arguments.run(arguments)
        return code

    assert run("list") == 0
    told = capsys.readouterr().out
    assert all(text in told for text in ("azure-conv", "CC-BY 4.0", "0.7 MB", "sha256 2f1e5b66", "size not known"))
    here = replace(trace_of("azure-conv"), url=f"{base}/whole.csv", sha256=SHA256)
    monkeypatch.setattr("burrstone.bench.load.traces.TRACES", (here,))
    assert run("fetch", "azure-conv", "--to", str(tmp_path)) == 0
    assert f"--workload trace:{tmp_path / 'azure_llm_2023_conv.csv'}" in capsys.readouterr().out
