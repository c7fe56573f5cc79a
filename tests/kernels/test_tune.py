"""`burrstone kernels tune`: which tiles are tried, and what is written."""

import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from burrstone.kernels import select as module
from burrstone.kernels.builds import LLAMA_8B
from burrstone.kernels.cli import main
from burrstone.kernels.gate import TARGETS
from burrstone.kernels.measure import trials, tune
from burrstone.kernels.measure.candidates import candidates, fits, shared_bytes
from burrstone.kernels.measure.device import Unusable, find
from burrstone.kernels.measure.tables import merge, read, tunable
from burrstone.kernels.measure.trials import fault
from burrstone.kernels.select import ARCHITECTURES, MULTIPROCESSORS, Tile, predicted, select

TOLD = {"device": "H100", "triton": "3.6.0", "torch": "2.11.0", "date": "2026-11-28", "us": 5.1, "best_peer_us": 6.0}
TILE = Tile(16, 128, 256, 2, 8, 3)


def row(arch: str = "sm90", m: int = 16, wins: bool | None = True, tile: Tile = TILE) -> dict[str, Any]:
    shape = {"m": m, "n": 4096, "k": 4096}
    return {"arch": arch, **shape, "tile": asdict(tile), "wins": wins, "provenance": TOLD}


def test_those_that_choose_a_tile_have_a_table() -> None:
    assert tunable() == ("gemm_w8a8_decode", "gemm_w8a16", "llm_int8")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("m", tune.BUCKETS)
@pytest.mark.parametrize("a_bytes", [1, 2])
def test_candidates_fit_and_the_cost_models_is_the_first(arch: str, m: int, a_bytes: int) -> None:
    for n, k in LLAMA_8B:
        tried = candidates(arch, m, n, k, a_bytes, 32)
        assert tried[0] == predicted(arch, m, n, k, MULTIPROCESSORS[arch])
        assert 8 < len(tried) == len(set(tried)) <= 32
        assert all(shared_bytes(tile, a_bytes) <= TARGETS[arch].shared_bytes for tile in tried[1:])
        assert all(k // tile.splits >= 2 * tile.block_k for tile in tried[1:])
        assert len({tile.block_k for tile in tried}) > 1 and len({tile.num_warps for tile in tried}) > 1


@pytest.mark.parametrize(
    ("tile", "k", "why"),
    [
        (Tile(64, 256, 512, 1, 8, 5), 14336, "shared memory"),
        (Tile(64, 512, 64, 1, 4, 2), 4096, "sums in registers"),
        (Tile(16, 64, 512, 8, 4, 2), 4096, "too few steps"),
        (Tile(16, 64, 256, 8, 4, 5), 4096, "more stages than steps"),
    ],
)
def test_what_is_not_worth_compiling(tile: Tile, k: int, why: str) -> None:
    assert not fits(tile, "sm90", k, 1), why
    assert fits(Tile(16, 64, 128, 2, 4, 4), "sm90", k, 1)


def test_a_table_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "files", lambda _: tmp_path)
    assert select("planted", "sm90", 9, 4096, 4096).wins is None
    merge(tmp_path, "planted", [row()])
    choice = select("planted", "sm90", 9, 4096, 4096)
    assert choice.tile == TILE and choice.wins is True and "H100" in choice.source
    merge(tmp_path, "planted", [row(wins=False)])
    assert select("planted", "sm90", 9, 4096, 4096).wins is False
    module.forget()


def test_rows_of_others_stay(tmp_path: Path) -> None:
    file = merge(tmp_path, "planted", [row("sm80"), row(m=64)])
    other = Tile(16, 64, 64, 1, 4, 2)
    merge(tmp_path, "planted", [row(tile=other, wins=None), row(m=64, wins=False)])
    found = {(each["arch"], each["m"]): (each["tile"], each["wins"]) for each in read(file)}
    assert found == {
        ("sm80", 16): (asdict(TILE), True),
        ("sm90", 16): (asdict(other), None),
        ("sm90", 64): (asdict(TILE), False),
    }
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_no_table_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "planted.json").write_text('{"rows": [{"arch": "sm90"}]}')
    with pytest.raises(Unusable, match="is no table of tiles"):
        merge(tmp_path, "planted", [row()])
    assert "sm90" in (tmp_path / "planted.json").read_text()


def test_a_rehearsal_writes_a_row_that_nothing_selects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--only", "gemm_w8a8_decode", "--candidates", "3", "--out", str(tmp_path)]
    assert main(["tune", "--device", "cpu", *flags]) == 0
    (found,) = read(tmp_path / "gemm_w8a8_decode.json")
    assert found["arch"] == "cpu" and found["wins"] is None and Tile(**found["tile"]).block_m == 16
    assert set(found["provenance"]) >= {"device", "triton", "torch", "date", "us", "best_peer_us"}
    said = capsys.readouterr().err
    assert "[1/1] gemm_w8a8_decode m=16 n=128 k=512" in said and "3 tiles timed" in said


def test_a_tile_that_is_wrong_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = trials.call

    def call(name: str, tile: Tile, given: dict[str, Any]) -> Any:
        return (lambda: None) if tile.num_stages == 4 else real(name, tile, given)

    monkeypatch.setattr(trials, "call", call)
    flags = ["--only", "gemm_w8a8_decode", "--candidates", "12", "--out", str(tmp_path)]
    assert main(["tune", "--device", "cpu", *flags]) == 0
    (found,) = read(tmp_path / "gemm_w8a8_decode.json")
    assert found["tile"]["num_stages"] != 4 and found["provenance"]["tried"] < 12
    monkeypatch.setattr(trials, "call", lambda *_: lambda: None)
    capsys.readouterr()
    assert main(["tune", "--device", "cpu", *flags]) == 1
    assert "tiles is fit: TooFar" in capsys.readouterr().err


def test_what_a_tile_fails_with_is_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def spilling(*_: object) -> int:
        return 12

    shape = {"m": 16, "n": 128, "k": 512}
    assert fault("gemm_w8a16", shape, TILE, find("cpu"), 1) is None
    monkeypatch.setattr(trials, "_spilled", spilling)
    assert fault("gemm_w8a16", shape, TILE, find("cpu"), 1) == "TooFar: 12 registers spill"


def test_tiles_are_tried_in_processes_beside() -> None:
    """What is late is stopped, and the next shape's tiles find a process again; so they do after one has died."""
    shape = {"m": 16, "n": 128, "k": 512}
    with trials.Trials(find("cpu"), seed=1, processes=1) as processes:
        assert processes.faults("gemm_w8a8_decode", shape, [TILE], 0.0) == {}
        assert not multiprocessing.active_children()
        assert processes.faults("gemm_w8a8_decode", shape, [TILE], 60.0) == {TILE: None}
        (child,) = multiprocessing.active_children()
        child.kill()
        child.join()
        broken = processes.faults("gemm_w8a8_decode", shape, [TILE], 60.0)
        assert all(told is not None and "BrokenProcessPool" in told for told in broken.values())
        assert processes.faults("gemm_w8a8_decode", shape, [TILE], 60.0) == {TILE: None}
    assert not multiprocessing.active_children()


def test_no_time_is_told_and_ctrl_c_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["tune", "--device", "cpu", "--candidates", "1", "--out", str(tmp_path)]
    assert main([*flags, "--budget-s", "1e-9"]) == 1
    assert "cut: gemm_w8a8_decode m=16 n=128 k=512: no time is left" in capsys.readouterr().err
    found, left = row(), [0]

    def tuned(*_: object) -> tuple[dict[str, Any], str]:
        left[0] += 1
        if left[0] == 2:
            raise KeyboardInterrupt
        return found, "found"

    monkeypatch.setattr(tune, "_tuned", tuned)
    assert main(flags) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["gemm_w8a8_decode.json"]
    assert json.loads((tmp_path / "gemm_w8a8_decode.json").read_text()) == {"rows": [found]}
