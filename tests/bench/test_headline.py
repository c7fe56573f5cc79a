"""The README's table is what the newest results say."""

from pathlib import Path

from burrstone.bench.headline import newest, written
from burrstone.bench.peers.side_by_side import GOALS, REQUESTS
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
