"""The README's table is what the newest results say."""

import json
from pathlib import Path

import pytest

from burrstone.bench import headline
from burrstone.bench.features import Round, summarize
from burrstone.bench.headline import main, newest, written
from burrstone.bench.peers.side_by_side import FIGURES, GOALS, REQUESTS, PeersPlan, summary
from burrstone.bench.peers.table import PEERS

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_is_up_to_date() -> None:
    assert written(README.read_text()) == README.read_text(), "run `make figures`"


def test_the_committed_results_are_whole() -> None:
    _, result = newest("peers")
    assert set(result["peers"]) | set(result["skipped"]) == set(PEERS)
    assert all(set(peer["streams"]) == {str(streams) for streams in REQUESTS} for peer in result["peers"].values())
    if not result["skipped"]:
        assert len(result["ratios"]) == len(GOALS)
    assert {"date", "cores", "amx", "vllm", "ray", "model"} <= set(result["setting"])


@pytest.fixture
def one_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page, and results of one round, which has no noise."""
    servers = ("burrstone", "vllm")
    found = {name: {streams: {figure: [30.0] for figure in FIGURES} for streams in REQUESTS} for name in servers}
    peers = summary(PeersPlan(rounds=1), found, {name: [20.0] for name in servers}, {})
    plain = Round(1000, 900, 0.1, 30.0, ["same"])
    turns = {
        "plain": [plain],
        "no cache": [Round(1000, 0, 0.2, 30.0, ["same"])],
        "n-gram": [plain],
        "plain again": [plain],
    }
    for kind, result in (("peers", peers), ("features", summarize(turns))):
        (tmp_path / f"{kind}-2026-01-01.json").write_text(json.dumps(result))
    monkeypatch.setattr(headline, "RESULTS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{headline._BEGIN}\nold\n{headline._END}\nafter\n")
    return page


def test_one_round_has_no_noise(one_round: Path) -> None:
    main([str(one_round)])
    text = one_round.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| burrstone | 30 (30 ms) | 30 (30 ms) | 30 (30 ms) | 30 (30 ms) | bfloat16 |" in text
    assert "| noise between rounds | - | - | - | - | |" in text
    assert "| ttft ratio | 2 | >= 3, **missed** | `features-2026-01-01.json` |" in text


def test_what_is_missing_is_told(one_round: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            main(words)
        return capsys.readouterr().err

    assert "usage: python -m burrstone.bench.headline" in refused()
    assert "No such file" in refused(str(one_round.with_name("absent.md")))
    (one_round.with_name("plain.md")).write_text("text")
    assert "no place for the figures" in refused(str(one_round.with_name("plain.md")))
    for file in one_round.parent.glob("peers-*.json"):
        file.unlink()
    assert "there is no peers-*.json" in refused(str(one_round))
    assert "old" in one_round.read_text()
