"""The peers side by side: the arithmetic of rounds and goals, and what is refused. (How long things take is not tested.)"""

from typing import Any

import pytest

from burrstone.bench.peers.side_by_side import FIGURES, REQUESTS, Found, PeersPlan, summary, table
from burrstone.bench.peers.table import PEERS
from burrstone.serving.cli.main import main


def found(**tokens_per_s: list[float]) -> Found:
    """The same at every number of streams."""
    return {
        name.replace("_", "-"): {streams: dict.fromkeys(FIGURES, values) for streams in REQUESTS}
        for name, values in tokens_per_s.items()
    }


def summarized(of: Found, skipped: dict[str, str] | None = None) -> dict[str, Any]:
    starts_s = {name: [20.0, 30.0] for name in of}
    return summary(PeersPlan(rounds=2), of, starts_s, skipped or {})


def test_each_round_is_compared_with_its_own() -> None:
    # The machine slows down fourfold in the second round; the ratio is the same, and the noise is told.
    result = summarized(found(burrstone=[96.0, 24.0], vllm=[100.0, 25.0]))
    row = result["ratios"]["burrstone / vllm at 32"]
    assert (row["value"], row["rounds"], row["ok"]) == (0.96, [0.96, 0.96], True)
    assert result["noise"] == {str(streams): 3.0 for streams in REQUESTS}
    assert "burrstone / vllm at 1: 0.96 (goal >= 0.95) met" in table(result)


def test_goals_are_judged_where_both_were_measured() -> None:
    result = summarized(found(burrstone_int8=[150.0], vllm_default=[100.0]), {"llama.cpp": "no llama-server in PATH"})
    assert set(result["ratios"]) == {f"burrstone-int8 / vllm-default at {streams}" for streams in (1, 32)}
    assert not any(row["ok"] for row in result["ratios"].values())
    told = table(result)
    assert "burrstone-int8 / vllm-default at 1: 1.5 (goal >= 1.7) MISSED" in told
    assert "llama.cpp: left out, no llama-server in PATH" in told and "not known from one round" in told


def test_every_peer_says_what_it_computes_in() -> None:
    result = summarized(found(**{name.replace("-", "_"): [1.0] for name in PEERS}))
    assert {name for name, peer in result["peers"].items() if peer["precision"] != "bfloat16"} == {
        "burrstone-int8",
        "llama.cpp",
    }


def test_an_unknown_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "peers", "--only", "vlm"]) == 2
    assert "no peer is called 'vlm'; there are burrstone, vllm, burrstone-int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["peers", "--only", "llama.cpp"], "llama.cpp: no llama-server in PATH"),
        (["compare", "llama.cpp", "http://127.0.0.1:9"], "llama.cpp: no llama-server in PATH"),
    ],
)
def test_what_is_not_on_this_machine_is_told_before_anything_starts(
    command: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", *command]) == 2
    assert told in capsys.readouterr().err
