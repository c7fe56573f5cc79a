"""The folder in which a checkpoint grows: whose it is, what a full disk leaves in it, and how it becomes the output."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from quant_runs import HELD_RUN, RTN, Plan, contents, hold_workspace, make, partial, process_of, small_disk, write_text
from safetensors import SafetensorError
from tiny_models import tiny_model

from burrstone.quant import workspace as module
from burrstone.quant.errors import BadCheckpoint, Interfered, OutOfSpace, QuantizeError
from burrstone.quant.recipe import Recipe
from burrstone.quant.workspace import Workspace

RUN = HELD_RUN
TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int8)}
MIB = 2**20


def test_what_is_saved_is_there_and_the_output_holds_nothing_else(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "deep" / "out", RUN)
    space.save_tensors("one.safetensors", TENSORS)
    space.save_json("config.json", {"a": 1})
    space.save_text("README.md", "grün\n")
    space.remove("never.there")
    read = space.load_tensors("one.safetensors")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in TENSORS.items()}
    (space.folder / ".scratch").write_text("of a run that was killed")
    space.finish()
    assert set(contents(space.out)) == {"one.safetensors", "config.json", "README.md"}
    assert not space.folder.exists()


def test_an_output_that_exists_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for kind in ("file", "folder"):
        out = tmp_path / kind
        out.write_text("mine") if kind == "file" else out.mkdir()
        with pytest.raises(Interfered, match=rf"^{out} exists; remove it or choose another -o$"):
            Workspace(out, RUN, restart=True)
        assert not partial(out).exists()


def test_the_same_run_goes_on_and_another_is_named_and_refused(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out", RUN)
    space.state["layers"].append({"units": []})
    space.save_state()
    os.close(space._lock)
    again = Workspace(tmp_path / "out", dict(reversed(RUN.items())))
    assert again.layers_done == 1
    os.close(again._lock)
    before = contents(space.folder)
    with pytest.raises(Interfered, match=r"belongs to a run with another new, threads; give --restart to start anew"):
        Workspace(tmp_path / "out", {**RUN, "threads": 2, "new": True})
    assert contents(space.folder) == before


def test_a_folder_that_is_not_ours_is_left_alone_unless_told_to_start_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("ten years of work")
    with pytest.raises(
        Interfered, match=r"out\.partial holds no \.state\.json; remove it or give --restart to start anew$"
    ):
        Workspace(tmp_path / "out", RUN)
    assert contents(folder) == {"thesis.txt": b"ten years of work"}
    Workspace(tmp_path / "out", RUN, restart=True)
    assert set(contents(folder)) == {".state.json"}


def test_the_lock_is_another_process_s_until_that_is_killed(tmp_path: Path) -> None:
    holder, pipe = process_of(hold_workspace, tmp_path / "out")
    assert pipe.recv() == "held"
    for restart in (False, True):
        with pytest.raises(Interfered, match=rf"^another process is making {tmp_path / 'out'}$"):
            Workspace(tmp_path / "out", RUN, restart=restart)
    holder.kill()
    holder.join(60)
    assert Workspace(tmp_path / "out", RUN).layers_done == 0


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_told_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Workspace(tmp_path / "out", RUN)
    before = contents(space.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(100 * MIB, 90 * MIB, 10 * MIB))
    with pytest.raises(OutOfSpace, match=r"10485760 bytes are free, x needs 53; make room and run again$"):
        space.save_tensors("x", TENSORS)
    assert contents(space.folder) == before


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (SafetensorError("Error while serializing: something else"), False),
    ],
    ids=str,
)
def test_only_a_full_disk_is_called_full(
    error: Exception, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Workspace(tmp_path / "out", RUN)
    space.save_tensors("x", TENSORS)
    before = contents(space.folder)

    def fail(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OutOfSpace if full else (QuantizeError, SafetensorError)) as caught:
        space.save_tensors("x", {"a": torch.zeros(9)})
    assert isinstance(caught.value, OutOfSpace) == full
    if full:
        assert str(caught.value) == f"{space.folder}: the disk is full; 0 layers are kept, make room and run again"
        assert contents(space.folder) == before


def test_a_damaged_file_names_itself_and_the_way_out(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out", RUN)
    space.save_tensors("x", TENSORS)
    (space.folder / "x").write_bytes((space.folder / "x").read_bytes()[:-3])
    for name in ("x", "absent"):
        with pytest.raises(BadCheckpoint, match=rf"out\.partial/{name} cannot be read.*give --restart"):
            space.load_tensors(name)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Of a run that has been made once, in `out`, without trouble."""
    folder = tmp_path_factory.mktemp("plan")
    plan = Plan(tiny_model(folder / "tiny"), folder / "out", RTN)
    assert make(plan) == ""
    return plan


@pytest.mark.parametrize("inodes", [3, 4, 5, 7, 9, 12, 14])
def test_a_disk_without_inodes_stops_the_run_and_room_lets_it_go_on(inodes: int, plan: Plan, tmp_path: Path) -> None:
    """A tmpfs of so many inodes fills up after so many files, whatever file that is."""
    with small_disk(tmp_path / "disk", f"size=80m,nr_inodes={inodes}") as change:
        if change is None:
            pytest.skip("this user may not mount")
        here = dataclasses.replace(plan, out=tmp_path / "disk" / "out")
        message = make(here)
        assert message.startswith(f"OutOfSpace: {partial(here.out)}: the disk is full; ")
        assert message.endswith(" layers are kept, make room and run again")
        assert not here.out.exists()
        assert ".scratch" not in contents(partial(here.out))
        change("nr_inodes=1000")
        assert make(here) == ""
        assert contents(here.out) == contents(plan.out)


def test_a_disk_without_bytes_stops_the_run_and_room_lets_it_go_on(plan: Plan, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=66m") as change:
        if change is None:
            pytest.skip("this user may not mount")
        here = dataclasses.replace(plan, out=tmp_path / "disk" / "out")
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(b"x" * (3 * MIB))
        message = make(here)
        assert message.startswith(f"OutOfSpace: {partial(here.out)}: ")
        assert message.endswith("; make room and run again")
        assert not here.out.exists()
        filler.unlink()
        assert make(here) == ""
        assert contents(here.out) == contents(plan.out)


@pytest.mark.parametrize("max_file_bytes", [900, 30_000, 40_000])
def test_a_file_that_may_not_grow_stops_the_run_in_the_same_way(
    max_file_bytes: int, plan: Plan, tmp_path: Path
) -> None:
    here = dataclasses.replace(plan, out=tmp_path / "out")
    message = make(dataclasses.replace(here, max_file_bytes=max_file_bytes))
    layers = 3 if max_file_bytes > 34_424 else 0
    assert message == (
        f"OutOfSpace: {partial(here.out)}: the disk is full; {layers} layers are kept, make room and run again"
    )
    assert not here.out.exists()
    assert make(here) == ""
    assert contents(here.out) == contents(plan.out)


def test_hidden_states_that_find_no_room_cost_their_layer_alone(plan: Plan, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", seed=3)
    smoothed = dataclasses.replace(plan, recipe=Recipe(method="smoothquant"), text=text, out=tmp_path / "whole")
    assert make(smoothed) == ""
    here = dataclasses.replace(smoothed, out=tmp_path / "out")
    assert "the disk is full; 0 layers" in make(dataclasses.replace(here, max_file_bytes=40_000))
    assert make(here) == ""
    assert contents(here.out) == contents(smoothed.out)


def test_a_disk_that_takes_no_folder_is_called_full(plan: Plan, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=80m,nr_inodes=1") as change:
        if change is None:
            pytest.skip("this user may not mount")
        message = make(dataclasses.replace(plan, out=tmp_path / "disk" / "out"))
        assert message.startswith("OutOfSpace")


def test_an_output_that_somebody_makes_meanwhile_is_told_and_the_work_kept(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out", RUN)
    space.state["layers"].append({"units": []})
    space.save_state()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log").write_text("theirs")
    try:
        space.finish()
    except Interfered:
        os.close(space._lock)
    finally:
        assert (space.folder / ".state.json").exists()
    shutil.rmtree(tmp_path / "out")
    assert Workspace(tmp_path / "out", RUN).layers_done == 1


def test_an_output_that_appears_just_before_the_lock_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        (tmp_path / "out").mkdir()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(Interfered):
        Workspace(tmp_path / "out", RUN)


def test_restart_clears_folders_too_or_says_that_it_does_not(tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "sub").mkdir(parents=True)
    try:
        Workspace(tmp_path / "out", RUN, restart=True)
    except Interfered:
        return
    assert set(contents(tmp_path / "out.partial")) == {".state.json"}


@pytest.mark.parametrize("state", ["{", "[]", '{"run": 5}', '{"layers": 1}'])
def test_a_state_that_is_not_ours_is_named(state: str, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / ".state.json").write_text(state)
    with pytest.raises((Interfered, BadCheckpoint), match="--restart"):
        Workspace(tmp_path / "out", RUN)
    assert (tmp_path / "out.partial" / ".state.json").read_text() == state


def test_state_json_tells_what_the_run_is(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out", RUN)
    assert json.loads((space.folder / ".state.json").read_text()) == {"run": RUN, "layers": []}
