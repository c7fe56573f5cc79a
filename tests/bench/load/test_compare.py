"""Two servers in turns: the arithmetic of rounds, and both wires of one real server against each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from burrstone.bench.load.compare import compared, passes, ratio_of, table
from burrstone.serving.cli.main import main
from harness import Server


def test_a_round_is_compared_with_itself() -> None:
    # The machine is three times slower in the second round, and B is a tenth slower than A in every one.
    first, second = [(100.0, 110.0), (30.0, 33.0), (90.0, 90.0)], [(90.0, 99.0), (27.0, 29.7), (81.0, 81.0)]
    found = ratio_of(first, second)
    assert found.rounds == pytest.approx([0.9, 0.9, 0.9])
    assert (found.ratio, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))
    assert found.noise == pytest.approx(1 / 11, abs=1e-6)


def test_rounds_that_differ_widen_the_interval() -> None:
    found = ratio_of([(1.0, 1.0)] * 5, [(0.8, 0.8), (0.9, 0.9), (1.0, 1.0), (1.1, 1.1), (1.2, 1.2)])
    assert found.low < 0.95 and found.ratio == pytest.approx(1.0) and found.high > 1.05


def run_with(
    tokens_per_s: float, lateness_ms: float = 0.1, *, goodput: float = 0.0, failed: int = 1, other_lengths: int = 0
) -> dict[str, Any]:
    return {
        "output_throughput": tokens_per_s,
        "request_throughput": 1.0,
        "goodput_rps": goodput,
        "median_ttft_ms": 10.0,
        "p99_ttft_ms": 20.0,
        "median_tpot_ms": None,
        "lateness_p99_ms": lateness_ms,
        "client_lag_p99_ms": 0.0,
        "client_was_bottleneck": lateness_ms > 5.0,
        "failed": failed,
        "other_lengths": other_lengths,
    }


def test_figures_that_a_run_lacks_are_left_out() -> None:
    found = compared({"A": [run_with(100.0), run_with(100.0)], "B": [run_with(50.0), run_with(50.0)]})
    assert found["output_throughput"]["ratio"] == 0.5 and "median_tpot_ms" not in found
    assert found["failed"] == {"A": 2, "B": 2} and not found["client_was_bottleneck"]
    assert "failed requests: A 2, B 2" in table(found) and "0.500 to 0.500" in table(found)
    late = compared({"A": [run_with(1.0), run_with(1.0, 9.0)], "B": [run_with(1.0), run_with(1.0)]})
    assert late["client_was_bottleneck"]


def test_no_goodput_is_shown_and_has_no_ratio() -> None:
    served, starved = [run_with(100.0, goodput=2.0)] * 2, [run_with(100.0)] * 2
    found = compared({"A": served, "B": starved})["goodput_rps"]
    assert (found["A"], found["B"], found["ratio"]) == (2.0, 0.0, 0.0)
    other_way = compared({"A": starved, "B": served})
    assert other_way["goodput_rps"]["ratio"] is None and other_way["goodput_rps"]["B"] == 2.0
    assert "goodput_rps" in table(other_way)


@pytest.mark.parametrize(
    ("second", "at_least", "ok"),
    [
        (run_with(100.0, failed=0), 0.95, True),
        (run_with(90.0, failed=0), 0.95, False),
        (run_with(90.0, failed=0), None, True),
        (run_with(100.0, failed=1), 0.95, False),
        (run_with(100.0, failed=0, other_lengths=1), 0.95, False),
        (run_with(100.0, 9.0, failed=0), None, False),
    ],
)
def test_what_passes(second: dict[str, Any], at_least: float | None, ok: bool) -> None:
    first = run_with(100.0, failed=0)
    assert passes(compared({"A": [first] * 12, "B": [second] * 12}), at_least) is ok


def test_few_rounds_are_less_sure_and_it_is_told() -> None:
    few = compared({"A": [run_with(1.0)] * 4, "B": [run_with(1.0)] * 4})
    assert few["confidence"] == 0.5 and "50% interval" in table(few)
    assert compared({"A": [run_with(1.0)] * 12, "B": [run_with(1.0)] * 12})["confidence"] == 0.95


def test_one_server_over_both_wires(scripted: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servers = (scripted.url, f"grpc://{scripted.grpc_address}")
    load = ("--workload", "fixed:input=8,output=4", "--concurrency", "2", "--num-requests", "4", "--rounds", "2")
    # Lateness is of this machine at this moment.
    assert main(["bench", "compare", *servers, *load, "--json", str(tmp_path / "out.json")]) in (0, 1)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["failed"] == {"A": 0, "B": 0} and len(found["output_throughput"]["rounds"]) == 2
    assert "output_throughput" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--rounds", "1"), "--rounds must be at least 2"),
        (("--rounds", "3", "--at-least", "0.9"), "--rounds must be at least 6, for an interval of 95 %"),
        ((), "no list of models"),
        (("--at-least", "-1"), "--at-least must be above 0, got -1"),
    ],
)
def test_what_cannot_be_compared(flags: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "http://127.0.0.1:9", "http://127.0.0.1:9", *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_name_that_no_server_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "vlm", "burrstone"]) == 2
    assert "no server that can be started has that name; there are burrstone, vllm" in capsys.readouterr().err
