"""Which tile a product uses."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.kernels import select as module
from burrstone.kernels.select import ARCHITECTURES, Tile, bucket, predicted, select

TILE = {"block_m": 32, "block_n": 128, "block_k": 256, "splits": 2, "num_warps": 8, "num_stages": 3}


@given(st.integers(1, 64), st.integers(1, 40_000), st.integers(1, 40_000), st.sampled_from(ARCHITECTURES))
def test_a_prediction_can_be_launched(m: int, n: int, k: int, arch: str) -> None:
    tile = predicted(arch, m, n, k, 132)
    assert tile.block_m >= 16 and tile.block_m & (tile.block_m - 1) == 0
    assert tile.splits == 1 or k // tile.splits >= 512
    assert tile.count(m, n) * tile.block_m * tile.block_n >= m * n


@pytest.mark.parametrize(("n", "k", "splits"), [(4096, 4096, 4), (28672, 4096, 1), (4096, 14336, 4), (512, 8192, 16)])
def test_few_tiles_are_split(n: int, k: int, splits: int) -> None:
    assert predicted("sm90", 16, n, k, 132).splits == splits


@pytest.mark.parametrize(("m", "expected"), [(1, 16), (16, 16), (17, 32), (64, 64)])
def test_buckets(m: int, expected: int) -> None:
    assert bucket(m) == expected


def test_a_measured_row_wins_and_says_where_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"device": "H100", "triton": "3.6.0", "date": "2026-11-28", "us": 5.1}
    row = {"arch": "sm90", "m": 16, "n": 4096, "k": 4096, "tile": TILE, "provenance": told}
    (tmp_path / "planted.json").write_text(json.dumps({"rows": [row]}))
    monkeypatch.setattr(module, "files", lambda _: tmp_path)
    choice = select("planted", "sm90", 9, 4096, 4096)
    assert choice.tile == Tile(**TILE) and choice.source == "tuned on H100, Triton 3.6.0, 2026-11-28"
    assert select("planted", "sm90", 9, 4096, 4097).source == "cost model"
    assert select("planted", "sm80", 9, 4096, 4096).source == "cost model"
