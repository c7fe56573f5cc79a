"""From results to one file: real small runs, read back, drawn, opened in a browser; small ones made by hand; what is refused."""

import argparse
import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burrstone.batching.errors import UsageError
from burrstone.bench.features import Round, summarize
from burrstone.bench.headline import RESULTS
from burrstone.bench.load.compare import FIGURES
from burrstone.bench.load.record import Record
from burrstone.bench.peers.servers import free_port
from burrstone.bench.peers.side_by_side import FIGURES as PEER_FIGURES
from burrstone.bench.peers.side_by_side import REQUESTS, PeersPlan, summary
from burrstone.bench.report.cli import add_parser
from burrstone.bench.report.drawings import compare_drawings, latency_drawings, peers_drawings, rate_drawings
from burrstone.bench.report.read import Compare, Peers, Run, Slo, read_results
from burrstone.bench.report.sections import verdict
from burrstone.bench.report.timeline import timeline_drawings
from burrstone.bench.swarm.ledger import Ledger, Report
from burrstone.bench.swarm.tally import Tally
from burrstone.serving.cli.main import main
from harness import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SLOS = ("--ttft-s", "30", "--tpot-s", "30")
LOADS = {
    "tenants": ("run", "--workload", "tenants:tenants=3", "--rate", "12", "--duration-s", "1", "--seed", "2"),
    "slow": ("run", "--workload", "fixed:input=8,output=6", "--rate", "8", "--duration-s", "1"),
    "fast": ("run", "--workload", "fixed:input=8,output=6", "--rate", "30", "--duration-s", "1"),
    "closed": ("run", "--workload", "fixed:input=8,output=6", "--concurrency", "2", "--num-requests", "6"),
    "capacity": (
        "slo",
        "--workload",
        "fixed:input=8,output=4",
        "--duration-s",
        "1",
        "--start-rate",
        "30",
        "--most-runs",
        "2",
    ),
}


@pytest.fixture(scope="module")
def results(scripted: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a result of each kind. Lateness, and so exit codes, are of this machine at this moment."""
    folder = tmp_path_factory.mktemp("results")
    for name, (kind, *load) in LOADS.items():
        records = ("--records", str(folder / f"{name}.jsonl")) if kind == "run" else ()
        files = ("--json", str(folder / f"{name}.json"), *records)
        assert main(["bench", kind, "--url", scripted.url, *load, *SLOS, *files]) in (0, 1)
    pairs = ("--workload", "fixed:input=8,output=4", "--concurrency", "2", "--num-requests", "4", "--rounds", "2")
    servers = (scripted.url, f"grpc://{scripted.grpc_address}")
    assert main(["bench", "compare", *servers, *pairs, *SLOS, "--json", str(folder / "both.json")]) in (0, 1)
    return folder


def report(*words: str | Path) -> int:
    given = ["report", *map(str, words)]
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    arguments = parser.parse_args(given)
    arguments.command_line = shlex.join(["burrstone", "bench", *given])
    code: int = arguments.run(arguments)
    return code


def all_of(folder: Path) -> list[Path]:
    return [folder / f"{name}.json" for name in (*LOADS, "both")] + [folder / "tenants.jsonl"]


def test_every_part_is_there_and_the_network_is_asked_for_nothing(results: Path, tmp_path: Path) -> None:
    assert report(*all_of(results), "--out", tmp_path / "report.html", "--cost-per-hour", "2.5") == 0
    text = (tmp_path / "report.html").read_text()
    assert titles(text) == [
        *("Result", "Rate and goodput", "Comparison: both", "Latencies", "Timeline", "Tenants", "Cost", "Setting"),
        "How to get these figures again",
    ]
    assert not re.search(r"<script|@import|url\(|src=|href=\"(?!data:)", text)
    assert "cost per hour / (output tokens per second x 3600) x 1,000,000, at 2.5 an hour" in text
    assert "burrstone bench run --url" in text and "<dt>vllm</dt>" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def titles(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def cells(text: str, section: str, row: str) -> list[str]:
    """The table row that begins with this cell."""
    body = text[text.index(f"<h2>{section}</h2>") :]
    found = re.search(rf'<tr[^>]*><td class="word">{re.escape(row)}</td>(.*?)</tr>', body)
    assert found is not None
    return [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<td.*?>(.*?)</td>", found[1])]


@pytest.mark.parametrize("files", [("tenants.json",), ("tenants.jsonl",), ("tenants.json", "tenants.jsonl")])
def test_goodput_is_that_of_the_records(results: Path, tmp_path: Path, files: tuple[str, ...]) -> None:
    """Computed again from the records alone, without our code."""
    rows = [json.loads(line) for line in (results / "tenants.jsonl").read_text().splitlines()]

    def good(row: dict[str, Any]) -> bool:
        pieces_s, size = row["pieces_s"], row["output_tokens"]
        if row["error"] is not None or pieces_s[0] - row["intended_s"] > row["slo"]["ttft_s"]:
            return False
        return bool(size < 2 or (pieces_s[-1] - pieces_s[0]) / (size - 1) <= row["slo"]["tpot_s"])

    took_s = max(row["ended_s"] for row in rows)
    goodput, attainment = sum(map(good, rows)) / took_s, sum(map(good, rows)) / len(rows)
    assert report(*(results / name for name in files), "--out", tmp_path / "out.html", "--cost-per-hour", "3.6") == 0
    text = (tmp_path / "out.html").read_text()
    found = cells(text, "Result", "tenants")
    assert found[0] == str(len(rows)) and found[2] == f"{100 * attainment:.1f} %"
    assert float(found[3].replace(",", "")) == pytest.approx(goodput, rel=0.006)
    tokens_per_s = sum(row["output_tokens"] for row in rows) / took_s
    assert float(cells(text, "Cost", "tenants")[1]) == pytest.approx(1000 / tokens_per_s, rel=0.006)
    by_tenant: dict[str, int] = {}
    for row in rows:
        by_tenant[row["tenant"]] = by_tenant.get(row["tenant"], 0) + row["output_tokens"]
    for name, tokens in by_tenant.items():
        assert cells(text, "Tenants", name)[-1] == f"{tokens:,}"
    shares = np.array(list(by_tenant.values()))
    assert f"{shares.sum() ** 2 / (len(shares) * (shares**2).sum()):.3f}" in text


def test_a_result_and_its_records_draw_the_same(results: Path) -> None:
    (by_json,) = read_results([results / "fast.json"]).runs
    (by_records,) = read_results([results / "fast.jsonl"]).runs
    for one, other in zip(latency_drawings([by_json]), latency_drawings([by_records]), strict=True):
        assert one.series[0].x == pytest.approx(other.series[0].x, rel=1e-6)
        assert one.series[0].y[-1] == 1.0
    assert by_json.ttft_ms.max() == pytest.approx(by_json.result["p99_ttft_ms"], rel=0.5)


def test_output_tokens_over_time_are_all_of_them(results: Path) -> None:
    (run,) = read_results([results / "fast.json"]).runs
    drawn = {drawing.file: drawing for drawing in timeline_drawings([run])}
    line, unit = drawn["output-tokens"].series[0], drawn["output-tokens"].y_axis.label
    tokens = (line.y[:-1] * np.diff(line.x)).sum() * (1000 if unit.startswith("thousand") else 1)
    assert tokens == pytest.approx(run.result["total_output_tokens"])
    assert {"in-flight", "generations"} <= drawn.keys() and "kv-share" not in drawn
    assert drawn["in-flight"].series[0].y[-1] == 0


def test_runs_that_differ_in_their_rate_are_a_curve_beside_the_search(results: Path) -> None:
    found = read_results([results / f"{name}.json" for name in ("fast", "closed", "slow", "tenants", "capacity")])
    goodput, attainment = rate_drawings(found.slos, found.runs)
    assert [series.name.split(" on ")[0] for series in goodput.series] == [
        "capacity",
        "fixed:input=8,output=6",
        "if all were good",
    ]
    assert attainment.series[0].x.tolist() == [30.0, 60.0] and attainment.series[1].x.tolist() == [8.0, 30.0]
    assert attainment.series[0].y.tolist() == [1.0, 1.0] and attainment.y_axis.goal == 0.9
    fast, slow = (
        Run(run.name, json.loads(json.dumps(run.result))) for run in found.runs if run.name in ("fast", "slow")
    )
    fast.setting["ttft_s"] = 1.0
    assert rate_drawings([], [fast, slow]) == [], "other SLOs are another curve"
    assert rate_drawings([], [run for run in found.runs if run.name == "closed"]) == []


def test_a_failed_request_is_never_answered() -> None:
    lists = {"ttfts": [0.1, 0.0], "latencies": [0.3, 0.0], "itls": [[0.2], []], "output_lens": [2, 0]}
    run = Run("a", {**lists, "start_times": [1.0, 2.0], "intended_times": [0.9, 2.0], "errors": ["", "503 full"]})
    assert run.ttft_ms.tolist() == pytest.approx([200.0, np.inf])
    assert run.e2e_ms.tolist() == pytest.approx([400.0, np.inf])
    assert run.tpot_ms.tolist() == pytest.approx([200.0, np.inf])


def test_a_run_in_which_all_failed_is_a_result(results: Path, tmp_path: Path) -> None:
    files = ("--json", str(tmp_path / "dead.json"), "--records", str(tmp_path / "dead.jsonl"))
    load = ("--workload", "fixed:input=8,output=4", "--rate", "20", "--duration-s", "0.5", "--model", "m")
    assert main(["bench", "run", "--url", f"http://127.0.0.1:{free_port()}", *load, *files]) == 1
    offered = json.loads((tmp_path / "dead.json").read_text())["offered"]
    for given in (("dead.json",), ("dead.jsonl",), ("dead.json", "dead.jsonl")):
        named = [tmp_path / name for name in given]
        assert report(*named, "--out", tmp_path / "out.html", "--png", tmp_path, "--cost-per-hour", "1") == 0
        text = (tmp_path / "out.html").read_text()
        assert titles(text)[:2] == ["Result", "Failures"] and "Latencies" not in text and "Timeline" not in text
        assert cells(text, "Result", "dead")[:4] == [str(offered), str(offered), "0.0 %", "0"]
        assert f"<dt>dead: {offered}</dt>" in text and cells(text, "Cost", "dead") == ["0", "-"]
    assert report(tmp_path / "dead.json", results / "slow.json", "--out", tmp_path / "out.html") == 0
    text = (tmp_path / "out.html").read_text()
    assert {"Result", "Failures", "Latencies", "Timeline"} <= set(titles(text)) and "dead: no metrics" in text


def test_goodput_over_rate_is_the_same_for_runs_and_searches() -> None:
    """However long a run waited for its last answers."""
    setting = {"workload": "chat", "url": "here", "concurrency": None}
    runs = [
        Run(
            f"at {rate}",
            {"slo_attainment": 0.75, "offered": 40, "goodput_rps": 0.1, "setting": setting | {"rate": rate}},
        )
        for rate in (4.0, 8.0)
    ]
    tried = [{"rate": rate, "good": 30, "offered": 40, "sustained": False} for rate in (8.0, 4.0)]
    slo = Slo("search", {"tried": tried, "sustained_rps": 0.0, "failed_rps": 4.0, "attainment": 0.9})
    goodput, _ = rate_drawings([slo], runs)
    assert [series.y.tolist() for series in goodput.series] == [[3.0, 6.0], [3.0, 6.0], [0.0, 8.0]]
    assert "offered rate x share within all of their SLOs" in goodput.text


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"ratio": None, "low": None, "high": None, "noise": None}, "-"),
        ({"ratio": 0.9, "low": 0.88, "high": 0.92, "noise": 0.02}, "A is better"),
        ({"ratio": 1.1, "low": 1.08, "high": 1.12, "noise": 0.02}, "B is better"),
        ({"ratio": 1.1, "low": 1.08, "high": 1.12, "noise": 0.2}, "no difference shown"),
        ({"ratio": 1.1, "low": 0.99, "high": 1.12, "noise": 0.02}, "no difference shown"),
    ],
)
def test_a_difference_within_the_noise_is_none(row: dict[str, float], told: str) -> None:
    assert verdict(row, more_is_better=True) == told
    swapped = {"A is better": "B is better", "B is better": "A is better"}
    assert verdict(row, more_is_better=False) == swapped.get(told, told)


def test_each_round_is_drawn_over_the_noise() -> None:
    row = {"ratio": 0.9, "low": 0.88, "high": 0.92, "noise": 0.05, "rounds": [0.88, 0.9, 0.92]}
    (drawn,) = compare_drawings(Compare("both", {"output_throughput": row}))
    rounds, noise, median = drawn.series
    assert rounds.x.tolist() == [1, 2, 3] and rounds.y.tolist() == row["rounds"]
    assert noise.low is not None and noise.low.tolist() == [0.95, 0.95]
    assert median.high is not None and median.high.tolist() == [0.92, 0.92]


def written(file: Path, result: dict[str, Any]) -> Path:
    file.write_text(json.dumps(result))
    return file


def test_there_is_no_ratio_to_nothing(tmp_path: Path) -> None:
    none: dict[str, Any] = {"ratio": None, "low": None, "high": None, "noise": None, "rounds": []}
    one = {"ratio": 1.5, "low": 1.4, "high": 1.6, "noise": 0.01, "rounds": [1.4, 1.6], "A": 10.0, "B": 15.0}
    told = {"failed": {"A": 0, "B": 3}, "other_lengths": {"A": 1, "B": 0}, "confidence": 0.5}
    told |= {"lateness_p99_ms": 0.1, "client_was_bottleneck": False, "setting": {"servers": ["here", "there"]}}
    some = {"request_throughput": one, "goodput_rps": none | {"A": 0.0, "B": 2.0}}
    for figures in ({"output_throughput": one} | some, {"output_throughput": none | {"A": 0.0, "B": 0.0}} | some, some):
        file = written(tmp_path / "both.json", figures | told)
        assert report(file, "--out", tmp_path / "out.html", "--png", tmp_path / "pictures") == 0
        text = (tmp_path / "out.html").read_text()
        assert cells(text, "Comparison: both", "goodput, requests/s") == ["-", "0", "2", "-", "-", "-"]
        found = cells(text, "Comparison: both", "requests/s")
        assert found == ["B is better", "10", "15", "1.500", "1.400 to 1.600", "1.0 %"]
        assert "50 % interval" in text and "Failed requests: A 0, B 3." in text and "asked for: A 1, B 0." in text
    assert FIGURES.keys() >= some.keys() and not (tmp_path / "pictures" / "both-goodput-rps.png").exists()


def peers_result(**tokens_per_s: float) -> dict[str, Any]:
    """Each server with so many tokens/s of each stream, in one round."""
    found = {
        name.replace("_", "-"): {
            streams: {figure: [45.0] for figure in PEER_FIGURES} | {"output_throughput": [streams * value]}
            for streams in REQUESTS
        }
        for name, value in tokens_per_s.items()
    }
    skipped = {"ray-serve-llm": "ray-serve-llm did not start:\na long log"}
    result = summary(PeersPlan(rounds=1), found, {name: [20.0] for name in found}, skipped)
    floor = {name: {"tokens_per_s": 50.0, "reached": 0.6} for name in found if name == "burrstone"}
    return result | {"floor": floor}


def test_servers_side_by_side(tmp_path: Path) -> None:
    result = peers_result(burrstone=30.0, vllm=25.0, burrstone_int8=40.0, vllm_default=80.0)
    file = written(tmp_path / "peers.json", result)
    assert report(file, "--out", tmp_path / "out.html", "--png", tmp_path) == 0
    text = (tmp_path / "out.html").read_text()
    section = "Beside other servers: peers"
    assert titles(text) == [section, "Setting", "How to get these figures again"]
    assert cells(text, section, "burrstone") == ["bfloat16", *(f"{30 * n} (45 ms)" for n in (1, 4, 16, 32))]
    assert cells(text, section, "noise") == ["", "-", "-", "-", "-"]
    assert cells(text, section, "burrstone / vllm at 1") == ["met", "1.2", ">= 0.95"]
    assert cells(text, section, "burrstone-int8 / vllm-default at 1")[:3] == ["missed", "0.5", ">= 1.7"]
    assert "left out: ray-serve-llm did not start</dd>" in text and "a long log" not in text
    assert "one stream reaches 60.0 % of the 50 tokens/s that memory allows" in text
    assert "peers: 4 of 6 goals met." in text
    (drawn,) = peers_drawings(Peers("peers", result))
    assert [series.name for series in drawn.series] == list(result["peers"]) and drawn.x_axis.log
    # 80 x 32 tokens/s are many.
    assert drawn.series[0].x.tolist() == [1, 4, 16, 32] and drawn.series[0].y.tolist() == [0.03, 0.12, 0.48, 0.96]
    assert drawn.y_axis.label == "thousand tokens/s" and (tmp_path / "peers-tokens.png").exists()


def test_servers_none_of_which_started(tmp_path: Path) -> None:
    assert report(written(tmp_path / "peers.json", peers_result()), "--out", tmp_path / "out.html") == 0


def test_what_features_bring(tmp_path: Path) -> None:
    plain = Round(1000, 900, 0.1, 30.0, ["same"])
    servers = {"plain": plain, "plain again": plain, "no cache": Round(1000, 0, 0.2, 30.0, ["same"])}
    servers |= {"n-gram": Round(1000, 900, 0.1, 45.0, ["other"])}
    result = summarize({name: [one, one] for name, one in servers.items()})
    assert report(written(tmp_path / "features.json", result), "--out", tmp_path / "out.html") == 0
    text = (tmp_path / "out.html").read_text()
    assert titles(text)[0] == "Features: features"
    assert cells(text, "Features: features", "uncached tokens saved") == ["met", "0.9", ">= 0.86", "-", "0.9 to 0.9"]
    assert cells(text, "Features: features", "ttft ratio") == ["missed", "2", ">= 3", "0.0 %", "2 to 2"]
    assert "not the same texts as without" in text and "features: 2 of 3 goals met." in text


def test_committed_results_are_shown(tmp_path: Path) -> None:
    files = [file for kind in ("peers", "features", "int8") for file in sorted(RESULTS.glob(f"{kind}-[0-9]*.json"))]
    assert report(*files, "--out", tmp_path / "out.html") == 0
    shown = " ".join(titles((tmp_path / "out.html").read_text()))
    assert all(file.stem in shown for file in files)


def record(number: int, tenant: str, error: str | None = None) -> Record:
    sent_s, ended_s = 0.1 * number, 0.1 * number + 0.3
    pieces_s = [] if error else [sent_s + 0.2, ended_s]
    times: dict[str, Any] = {"sent_s": sent_s, "pieces_s": pieces_s, "ended_s": ended_s}
    return Record(number, sent_s, tenant, output_tokens=len(pieces_s), error=error, **times)


def swarm_result(*records: Record) -> dict[str, Any]:
    """What `bench locust --json-out` writes."""
    tallies: dict[str, Tally] = {}
    for one in records:
        tallies.setdefault(one.tenant, Tally()).add(one)
    ledger = Ledger()
    ledger.begin()
    ledger.take("local", Report(ledger.run, True, tallies))
    return ledger.summary() | {"setting": {"workload": "tenants", "rate": 10.0, "mode": "open"}}


def test_locusts_summary_has_figures_and_tenants(results: Path, tmp_path: Path) -> None:
    full = [record(number, "b", "503 full") for number in range(4, 7)]
    file = written(tmp_path / "swarm.json", swarm_result(*(record(number, "a") for number in range(4)), *full))
    assert report(file, "--out", tmp_path / "out.html") == 0
    text = (tmp_path / "out.html").read_text()
    assert titles(text)[:-1] == ["Result", "Failures", "Tenants", "Setting"]
    assert cells(text, "Result", "swarm")[:3] == ["7", "3", "57.1 %"] and "<dt>swarm: 3</dt><dd>503 full</dd>" in text
    assert cells(text, "Tenants", "a")[:3] == ["swarm", "4", "100.0 %"] and "swarm 0.500 and 0.500" in text
    assert report(file, results / "slow.json", "--out", tmp_path / "out.html", "--cost-per-hour", "1") == 0
    text = (tmp_path / "out.html").read_text()
    assert cells(text, "Result", "swarm")[:3] == ["7", "3", "57.1 %"] and cells(text, "Cost", "swarm")[0] != "0"


def test_a_swarm_that_offered_nothing_says_why(tmp_path: Path) -> None:
    file = written(tmp_path / "swarm.json", swarm_result() | {"warning": "no list of models there"})
    assert report(file, "--out", tmp_path / "out.html") == 0
    text = (tmp_path / "out.html").read_text()
    assert '<p class="bad">swarm: no list of models there</p>' in text and "swarm: 0 good requests/s, - of" in text


def test_files_of_one_name_are_told_apart(results: Path, tmp_path: Path) -> None:
    shutil.copy(results / "slow.json", tmp_path)
    names = [
        run.name for run in read_results([results / "slow.json", tmp_path / "slow.json", results / "fast.json"]).runs
    ]
    assert names == [str(results / "slow"), str(tmp_path / "slow"), "fast"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("absent.json", None, "absent.json: No such file"),
        ("absent.jsonl", None, "absent.jsonl: No such file"),
        ("broken.json", "{", "broken.json: not JSON"),
        ("list.json", "[]", "list.json: not a result of `burrstone bench run`, `slo` or `compare`"),
        ("other.json", '{"mean_ttft_ms": 3}', "other.json: not a result"),
        ("trace.jsonl", '{"timestamp": 0, "input_length": 3}\n', "trace.jsonl:1: no record"),
        ("empty.jsonl", "", "empty.jsonl: no request has ended"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=re.escape(told)):
        report(tmp_path / name, "--out", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_written_or_priced_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        report(results / "slow.json", "--out", tmp_path / "file" / "report.html")
    with pytest.raises(UsageError, match="--cost-per-hour must be > 0, got 0"):
        report(results / "slow.json", "--out", tmp_path / "report.html", "--cost-per-hour", "0")


def test_pictures_are_written(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    assert report(*all_of(results), "--out", tmp_path / "report.html", "--png", pictures) == 0
    told = capsys.readouterr().out
    written = {path.name for path in pictures.iterdir()}
    assert {"ttft-cdf.png", "e2e-cdf.png", "goodput.png", "in-flight.png", "both-output-throughput.png"} <= written
    for path in pictures.iterdir():
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5_000
        assert f"picture: {path}" in told


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium to open the report in a browser")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_complaint(results: Path, tmp_path: Path, width: int) -> None:
    """In a frame, since no window is as narrow as a phone; the page around it tells what the frame measured."""
    assert CHROMIUM is not None
    assert report(*all_of(results), "--out", tmp_path / "report.html", "--cost-per-hour", "2.5") == 0
    framed = html.escape((tmp_path / "report.html").read_text())
    measured = (
        "[w.innerWidth, w.document.documentElement.scrollWidth, w.performance.getEntriesByType('resource').length]"
    )
    around = (
        f'<!doctype html><title>-</title><link rel="icon" href="data:,"><iframe id="f" width="{width}" height="900" '
        f'style="border:0" srcdoc="{framed}"></iframe>'
        f"<script>f.onload = () => {{ const w = f.contentWindow; document.title = {measured}.join() }}</script>"
    )
    (tmp_path / "around.html").write_text(around)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/home",
    ]
    command = [CHROMIUM, *flags, "--dump-dom", str(tmp_path / "around.html")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    inner, scroll, resources = map(int, title[1].split(","))
    assert inner == width and scroll <= width and resources == 0
