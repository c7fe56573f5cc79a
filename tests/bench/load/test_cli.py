"""`burrstone bench run` against a server: what is printed and written, and what is refused."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from small_models import CACHE
from tokenizers import Tokenizer
from waiting import wait_until

from burrstone.bench.load.offer import Offered
from burrstone.bench.load.prompts import WORDS
from burrstone.bench.load.record import Record, read_records
from burrstone.bench.load.server_metrics import ServerMetrics
from burrstone.serving.cli.main import main
from burrstone.serving.engine.models import embedded_model
from harness import Server

Capture = pytest.CaptureFixture[str]
VLLMS = (
    *("request_throughput", "output_throughput", "mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "median_itl_ms"),
    *("p99_itl_ms", "completed", "duration", "ttfts", "itls", "input_lens", "output_lens", "start_times", "errors"),
)
OURS = ("offered", "failed", "goodput_rps", "lateness_p99_ms")


def run(server: Server, *flags: str, grpc: bool = False) -> int:
    where = ["--grpc", "--url", server.grpc_address] if grpc else ["--url", server.url]
    return main(["bench", "run", *where, "--seed", "1", *flags])


@pytest.mark.parametrize("grpc", [False, True])
@pytest.mark.parametrize("load", [("--rate", "20", "--duration-s", "1"), ("--concurrency", "3", "--num-requests", "8")])
def test_every_request_is_answered_and_written_down(
    scripted: Server, grpc: bool, load: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    files = ("--json", str(tmp_path / "out.json"), "--records", str(tmp_path / "records.jsonl"))
    # Lateness is of this machine at this moment: no part of the test.
    assert run(scripted, "--workload", "fixed:input=20,output=6", *load, *files, grpc=grpc) in (0, 1)
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(VLLMS) | set(OURS) <= set(found)
    records = list(read_records(tmp_path / "records.jsonl"))
    assert found["offered"] == found["completed"] == len(records) > 4 and found["failed"] == 0
    assert f"{found['completed']} of {found['offered']} answered, 0 failed" in capsys.readouterr().out
    assert all(record.ok and record.output_tokens > 0 for record in records)


def test_turns_are_taken_for_as_many_requests_as_asked_or_as_long(scripted: Server, tmp_path: Path) -> None:
    out, load = (
        tmp_path / "out.json",
        ("--workload", "fixed:input=8,output=1", "--concurrency", "4", "--duration-s", "1"),
    )
    assert run(scripted, *load, "--num-requests", "50", "--json", str(out)) in (0, 1)
    assert json.loads(out.read_text())["offered"] == 50
    assert run(scripted, *load, "--json", str(out)) in (0, 1)
    found = json.loads(out.read_text())
    assert found["offered"] > 4 and all(at_s < 1.0 for at_s in found["intended_times"])


def test_texts_differ_from_run_to_run_unless_their_seed_is_given(scripted: Server, tmp_path: Path) -> None:
    out, load = tmp_path / "out.json", ("--workload", "fixed:input=8,output=1", "--num-requests", "2")
    seeds = []
    for more in ((), (), ("--text-seed", "7")):
        run(scripted, *load, *more, "--json", str(out))
        seeds.append(json.loads(out.read_text())["setting"]["text_seed"])
    assert seeds[0] != seeds[1] and seeds[2] == 7


@pytest.mark.parametrize(
    ("late_s", "error", "lag_ms", "code"),
    [(0.0, None, 0.0, 0), (0.01, None, 0.0, 1), (0.0, "503 overloaded", 0.0, 1), (0.0, None, 6.0, 1)],
)
def test_a_late_client_or_a_server_without_answers_is_exit_code_1(
    late_s: float,
    error: str | None,
    lag_ms: float,
    code: int,
    scripted: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    async def offer(*_: Any, **__: Any) -> Offered:
        record = Record(0, 1.0, sent_s=1.0 + late_s, pieces_s=[1.5], ended_s=1.5, output_tokens=1, error=error)
        return Offered([record], lag_ms, ServerMetrics(missing="not asked for"))

    monkeypatch.setattr("burrstone.bench.load.cli.offer", offer)
    assert run(scripted, "--workload", "fixed") == code
    assert ("this measured the client" in capsys.readouterr().err) == (late_s > 0 or lag_ms > 0)


def test_keys_and_passwords_are_told_to_nobody(scripted: Server, tmp_path: Path) -> None:
    out, load = (
        tmp_path / "out.json",
        ("--workload", "fixed:input=8,output=1", "--num-requests", "2", "--model", "default"),
    )
    run(scripted, *load, "--key", "sk-a", "--key=sk-a-and-more", "--json", str(out))
    assert "sk-a" not in out.read_text()
    assert "--key KEY --key=KEY" in json.loads(out.read_text())["setting"]["command"]
    url = scripted.url.replace("http://", "http://somebody:secret@")
    assert main(["bench", "run", "--url", url, *load, "--json", str(out)]) in (0, 1)
    assert "secret" not in out.read_text() and json.loads(out.read_text())["completed"] == 2


@pytest.mark.parametrize("workload", ["chat", "shared-prefix", "rag", "agent", "json", "lora", "tenants"])
def test_each_workload_is_offered(scripted: Server, workload: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    flags = ("--workload", workload, "--rate", "30", "--duration-s", "0.5", "--num-requests", "6", "--json", str(out))
    assert run(scripted, *flags) in (0, 1)
    found = json.loads(out.read_text())
    assert found["offered"] > 0 and found["completed"] + found["failed"] == found["offered"]
    assert found["setting"]["workload"] == workload


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--rate", "0"), "--rate must be above 0 and finite, got 0"),
        (("--rate", "inf"), "--rate must be above 0 and finite, got inf"),
        (("--seed", "-1"), "--seed must be at least 0, got -1"),
        (("--duration-s", "-5"), "--duration-s must be above 0 and finite, got -5"),
        (("--timeout-s", "0"), "--timeout-s must be above 0 and finite, got 0"),
        (("--ttft-s", "-1"), "--ttft-s must be above 0 and finite, got -1"),
        (("--json", "/"), "--json / is a folder; name a file in it"),
        (("--records", f"{__file__}/records"), "is no folder that may be written to"),
        (("--records", "-"), "--records takes a file"),
        (("--json", "/tmp/x", "--records", "/tmp/x"), "--json and --records both name /tmp/x"),
        (("--url", "localhost:8000"), "localhost:8000: an address is http(s)://host:port"),
        (("--grpc",), "with --grpc an address is host:port, of the server's gRPC port"),
        (("--concurrency", "0"), "--concurrency must be at least 1, got 0"),
        (("--num-requests", "0"), "--num-requests must be at least 1, got 0"),
        (("--workload", "chatt"), "did you mean chat?"),
        (("--workload", "fixed:inputs=3"), "fixed has no parameter 'inputs'"),
        (("--workload", "trace:none.csv"), "none.csv: no such file"),
    ],
)
def test_what_cannot_be_offered_is_refused(
    flags: tuple[str, ...], told: str, scripted: Server, capsys: Capture
) -> None:
    assert run(scripted, *flags) == 2
    assert told in capsys.readouterr().err


def test_a_run_of_programs_may_be_short(scripted: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    flags = ("--workload", "agent", "--concurrency", "1", "--num-requests", "2", "--json", str(out))
    assert run(scripted, *flags) in (0, 1)
    assert json.loads(out.read_text())["offered"] == 2


def test_a_run_that_is_stopped_keeps_what_it_has(scripted: Server, tmp_path: Path) -> None:
    out, records = tmp_path / "out.json", tmp_path / "records.jsonl"
    # A shell's background lets all that is started there ignore Ctrl-C.
    heeding = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    heeding += "from burrstone.serving.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", heeding, "bench", "run", "--url", scripted.url]
    command += ["--workload", "fixed:input=8,output=4", "--rate", "20", "--duration-s", "300"]
    process = subprocess.Popen([*command, "--json", str(out), "--records", str(records)], stderr=subprocess.PIPE)
    served = _answers(scripted)
    wait_until(lambda: _answers(scripted) > served + 10)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "burrstone: stopped; what was under way counts as failed" in told.decode()
    found = json.loads(out.read_text())
    assert found["stopped"] and found["completed"] >= 10 and set(found["errors"]) <= {"", "stopped"}
    assert len(records.read_text().splitlines()) == found["offered"]


def _answers(server: Server) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match("burrstone_requests_total.*chat", line))


def test_where_nobody_listens_the_fix_is_told(capsys: Capture) -> None:
    assert main(["bench", "run", "--url", "http://127.0.0.1:9", "--duration-s", "1"]) == 2
    assert "http://127.0.0.1:9: no list of models there" in capsys.readouterr().err


def test_the_list_of_workloads(capsys: Capture) -> None:
    assert main(["bench", "run", "--workload", "list"]) == 0
    told = capsys.readouterr().out
    assert "shared-prefix:texts=4" in told and "trace:PATH" in told


def test_capacity_of_a_server_is_searched(scripted: Server, tmp_path: Path, capsys: Capture) -> None:
    flags = ("--workload", "fixed:input=8,output=4", "--duration-s", "1", "--start-rate", "30", "--most-runs", "2")
    slos = ("--ttft-s", "30", "--tpot-s", "30", "--json", str(tmp_path / "out.json"))
    assert main(["bench", "slo", "--url", scripted.url, *flags, *slos]) in (0, 1)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [tried["rate"] for tried in found["tried"]] == [30.0, 60.0]
    assert all(tried["good"] == tried["offered"] > 5 for tried in found["tried"])
    assert "requests/s" in capsys.readouterr().out


def test_runs_too_short_to_show_anything_are_refused(scripted: Server, capsys: Capture) -> None:
    assert main(["bench", "slo", "--url", scripted.url, "--duration-s", "2", "--start-rate", "3"]) == 2
    assert (
        "could not show an attainment of 0.9 even if all were good; make --duration-s longer" in capsys.readouterr().err
    )


def test_words_are_one_token_each() -> None:
    tokenizer = Tokenizer.from_file(str(embedded_model(CACHE) / "tokenizer.json"))
    assert [word for word in WORDS if len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) != 1] == []
