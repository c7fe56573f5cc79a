"""`burrstone kernels bench`, rehearsed without a GPU. Nothing here looks at how long anything took."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import torch

from burrstone.kernels.cli import main
from burrstone.kernels.measure import bench as module
from burrstone.kernels.measure import timing
from burrstone.kernels.measure.bench import Plan, bench
from burrstone.kernels.measure.budget import Budget
from burrstone.kernels.measure.cases.case import Goal, Kernel
from burrstone.kernels.measure.cases.every import CASES, chosen
from burrstone.kernels.measure.ceilings import Ceilings
from burrstone.kernels.measure.device import Device, find
from burrstone.kernels.measure.files import write_whole
from burrstone.kernels.measure.peers import Absent, Peer, compiled, missing, vllm_op
from burrstone.kernels.measure.report import REHEARSAL, write_report
from burrstone.kernels.measure.sanitizer import sanitize
from burrstone.kernels.measure.verdict import judged
from burrstone.kernels.registry import KERNELS

SCHEMA = json.loads((files("burrstone.kernels.measure") / "results.schema.json").read_text())
CEILINGS = Ceilings(copy_gb_s=3000.0, int8_top_s=1200.0, bf16_top_s=700.0, launch_us=2.0)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(results of all kernels, what was told), by the command, without what a bare GPU machine does not have."""
    folder = tmp_path_factory.mktemp("rehearsal")
    for name in ("vllm", "ray", "transformers", "tqdm"):
        (folder / f"{name}.py").write_text("raise ImportError('not on this machine')\n")
    out = folder / "made" / "results.json"
    command = [
        sys.executable,
        "-m",
        "burrstone.kernels.cli",
        "bench",
        "--device",
        "cpu",
        "--seed",
        "7",
        "--out",
        str(out),
    ]
    links = Path(__file__).parents[2] / ".links"
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{links}", "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, check=False, env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return out, run.stderr


def test_every_kernel_has_its_cases() -> None:
    assert CASES.keys() == KERNELS.keys()
    assert all(kernel.shapes and kernel.awkward and kernel.tiny and kernel.peers for kernel in CASES.values())


def test_every_kernel_is_rehearsed(rehearsal: tuple[Path, str]) -> None:
    results = json.loads(rehearsal[0].read_text())
    jsonschema.validate(results, SCHEMA)
    assert results["rehearsal"] and results["complete"] and results["seed"] == 7 and results["cut"] == []
    assert results["correctness"].keys() == CASES.keys()
    assert all(row["ok"] and row["checked"] for row in results["correctness"].values())
    assert {row["kernel"] for row in results["cases"]} == CASES.keys()
    assert all(row["goal"] is None and row["ok"] is None and row["reason"] for row in results["cases"])


def test_a_peer_is_timed_or_absent_for_a_reason(rehearsal: tuple[Path, str]) -> None:
    for row in json.loads(rehearsal[0].read_text())["cases"]:
        assert {peer.name for peer in CASES[row["kernel"]].peers} == row["peers"].keys() | row["absent"].keys()
        assert row["peers"], "those of PyTorch itself are there"
        assert all("no --vllm-library was given" in why for why in row["absent"].values() if "torch.ops._C" in why)


def test_the_table_and_the_picture_say_that_it_is_a_rehearsal(rehearsal: tuple[Path, str]) -> None:
    file, said = rehearsal
    text = file.with_suffix(".md").read_text()
    assert f"**{REHEARSAL}.**" in text and REHEARSAL in said
    assert all(f"| {name} |" in text for name in CASES)
    assert "## Absent peers" in text and "| gemlite |" in text
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in file.parent.iterdir()} == {"results.json", "results.md", "results.png"}


def test_a_report_is_drawn_elsewhere(
    rehearsal: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(rehearsal[0].read_bytes())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        told = write_report(json.loads(file.read_text()), file)
    assert "matplotlib is not installed" in told[-1] and f"burrstone kernels report {file}" in told[-1]
    assert not file.with_suffix(".png").exists()
    assert main(["report", str(file)]) == 0
    assert file.with_suffix(".png").exists() and "results.png written" in capsys.readouterr().err
    file.write_text("{}")
    assert main(["report", str(file)]) == 2
    assert "holds no results" in capsys.readouterr().err


def plan(*kernels: Kernel, budget_s: float = 500.0, **more: Any) -> Plan:
    return Plan(kernels=kernels, device=find("cpu"), seed=3, budget=Budget(budget_s), **more)


def run(plan: Plan) -> dict[str, Any]:
    results = bench(plan, lambda _: None, lambda _: None)
    jsonschema.validate(results | {"sanitizer": {}}, SCHEMA)
    return results


def quick(name: str, *peers: Peer) -> Kernel:
    """One shape, with these peers."""
    return replace(CASES[name], tiny=CASES[name].tiny[:1], peers=peers)


class Planted:
    """What an op is replaced by. It keeps the op's schema."""

    def __init__(self, name: str, function: Callable[..., None]) -> None:
        self.default, self._function = getattr(torch.ops.burrstone, name).default, function

    def __call__(self, *arguments: Any) -> None:
        self._function(*arguments)


def faults(name: str, function: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is found wrong with a kernel that does this. It must not have been timed."""
    with monkeypatch.context() as planted:
        planted.setattr(torch.ops.burrstone, name, Planted(name, function))
        results = run(plan(quick(name)))
    row = results["correctness"][name]
    assert results["cases"] == [] and row["ok"] is False
    return "; ".join(fault["what"] for fault in row["wrong"])


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_planted_fault_is_found_and_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of the first result is another one."""

    def faulty(*arguments: Any) -> None:
        KERNELS[name].reference(*arguments)
        found = arguments[0]
        place = (0,) * found.dim()
        found[place] = 10**6 if found.dtype == torch.int64 else -found[place] + 3

    assert faults(name, faulty, monkeypatch).startswith(("TooFar", "AssertionError"))


def test_what_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(out: torch.Tensor, scales: torch.Tensor, x: torch.Tensor) -> None:
        KERNELS["silu_mul_int8"].reference(out[:-1], scales[:-1], x[:-1])

    assert "Tensor-likes are not close" in faults("silu_mul_int8", lazy, monkeypatch)


def test_what_is_not_the_same_the_second_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def moody(out: torch.Tensor, scales: torch.Tensor, x: torch.Tensor) -> None:
        KERNELS["silu_mul_int8"].reference(out, scales, x)
        if next(calls) % 2:
            scales *= 1 + 2e-7

    assert "the second time" in faults("silu_mul_int8", moody, monkeypatch)


def test_a_count_that_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def counting(*arguments: Any) -> None:
        KERNELS["gemm_w8a8_decode"].reference(*arguments)
        arguments[-1].fill_(1)

    assert "the next launch would count on" in faults("gemm_w8a8_decode", counting, monkeypatch)


def test_peers_that_fail_or_compute_something_else_are_absent() -> None:
    def failing(_: dict[str, Any]) -> Callable[[], Any]:
        raise RuntimeError("no such device")

    def other(given: dict[str, Any]) -> Callable[[], Any]:
        return lambda: given["x"].float()[:, : given["out"].shape[1]]

    peers = (Peer("failing", failing), Peer("other", other), missing("away", "was never here"))
    (row,) = run(plan(quick("silu_mul_int8", *peers)))["cases"]
    assert row["absent"]["failing"] == "RuntimeError: no such device" and row["absent"]["away"] == "was never here"
    assert row["absent"]["other"].startswith("it computes something else: off by")
    assert row["best_peer"] is None and row["ratio"] is None


def test_what_the_time_does_not_do_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(plan(*chosen(["silu_mul_int8", "rms_norm_int8"]), budget_s=0.0))
    assert results["cases"] == [] and {row["ok"] for row in results["correctness"].values()} == {None}
    assert {(row["kernel"], row["what"]) for row in results["cut"]} == {
        (name, "correctness, and so its timing") for name in ("silu_mul_int8", "rms_norm_int8")
    }
    monkeypatch.setattr(timing, "rounds", lambda *_: 0)
    (cut,) = run(plan(quick("silu_mul_int8")))["cut"]
    assert "100 samples of each do not fit" in cut["what"]


def test_after_the_device_is_lost_nothing_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.burrstone, "silu_mul_int8", Planted("silu_mul_int8", lambda *_: None))
    monkeypatch.setattr(Device, "lost", lambda _: True)
    results = run(plan(*chosen(["silu_mul_int8", "rms_norm_int8"])))
    assert not results["complete"] and results["cases"] == [] and results["ceilings"] is None
    wrong = {name: (row["ok"], len(row["wrong"])) for name, row in results["correctness"].items()}
    assert wrong == {"silu_mul_int8": (False, 1), "rms_norm_int8": (None, 0)}
    assert "context was lost here" in results["cut"][-1]["what"]


def test_what_is_left_is_split_evenly() -> None:
    now = iter([10.0, 10.0, 40.0, 200.0])
    budget = Budget(100.0, lambda: next(now))
    assert [budget.share_s(4), budget.share_s(2), budget.share_s(1)] == [25.0, 35.0, 0.0]


def row(us: float, peers: dict[str, float], fraction: float = 0.5, **more: Any) -> dict[str, Any]:
    told = {name: {"us": each, "ratio": each / us} for name, each in peers.items()}
    return {"us": us, "peers": told, "fraction": fraction, "noise": 0.01, "bound": "bytes", "tile": None} | more


@pytest.mark.parametrize(
    ("given", "ok", "reason"),
    [
        (row(10.0, {"a": 20.0, "b": 11.0}, 0.9), True, None),
        (row(10.0, {"a": 12.0, "b": 11.0}, 0.9), False, "1.20x of a, 1.5x wanted; it is near its ceiling (bytes)"),
        (row(10.0, {"a": 20.0, "b": 11.0}, 0.3), False, "30% of the ceiling, 70% wanted; neither bytes nor arithmetic"),
        (row(10.0, {"a": 12.0}, 0.3, noise=0.2), False, "the same kernel differs by 20%"),
        (row(3.0, {"a": 3.3, "b": 4.0}, 0.3), False, "little more than a launch does"),
        (row(10.0, {"a": 9.0}, 0.3, tile="16x64x128/1, cost model"), False, "burrstone kernels tune"),
        (row(10.0, {"a": 20.0}, 0.9), None, "b is absent"),
        (row(10.0, {"b": 5.0}, 0.9), False, "0.50x of b, 1x wanted; a is absent"),
    ],
)
def test_a_miss_has_a_reason(given: dict[str, Any], ok: bool | None, reason: str | None) -> None:
    goal = Goal({("a",): 1.5, ("b", "c"): 1.0} if "c" in given["peers"] else {("a",): 1.5, ("b",): 1.0}, roof=0.7)
    found = judged(given, goal, CEILINGS, is_judged=True)
    assert found["ok"] is ok and found["goal"] == "1.5x of a; 1x of b; 70% of the ceiling"
    assert found["reason"] is None if reason is None else reason in found["reason"]


def test_elsewhere_nothing_is_judged() -> None:
    found = judged(row(10.0, {"a": 1.0}), Goal({("a",): 1.5}), CEILINGS, is_judged=False)
    assert found["goal"] is None and found["ok"] is None and "H100" in found["reason"]


def test_floors() -> None:
    """Of K3's cost on what an H100 has by its sheet: what is written down of it."""
    sheet = Ceilings(copy_gb_s=3350.0, int8_top_s=1979.0, bf16_top_s=989.0, launch_us=2.0)
    kernel = CASES["gemm_w8a8_decode"]
    for (m, n, k), expected, bound in (((1, 4096, 4096), 5.0, "bytes"), ((64, 28672, 4096), 36.3, "bytes")):
        us, found = sheet.floor_us(kernel.cost({"m": m, "n": n, "k": k}))
        assert us == pytest.approx(expected, abs=0.06) and found == bound
    us, found = sheet.floor_us(CASES["gemm_w8a8_prefill"].cost({"m": 8192, "n": 4096, "k": 4096}))
    assert us == pytest.approx(139, abs=0.5) and found == "int8"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bench"], "`--device cpu` rehearses everything"),
        (["tune"], "`--device cpu` rehearses everything"),
        (["bench", "--device", "cpu", "--only", "nobody"], "nobody is no kernel; there are rms_norm_int8, "),
        (["tune", "--device", "cpu", "--only", "lora", "--out", "x"], "lora has no table of tiles; gemm_w8a8_decode, "),
        (["tune", "--device", "cpu"], "a rehearsal wants --out"),
        (["bench", "--device", "cpu", "--out", "results.txt"], "results are JSON"),
        (["bench", "--device", "cpu", "--out", "/dev/null/results.json"], "cannot be written"),
        (["bench", "--device", "cpu", "--sanitizer"], "there is nothing to rehearse"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_done_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    found = capsys.readouterr().err
    assert found.startswith("burrstone: ") and told in found


def test_a_rehearsal_does_not_take_a_real_results_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    out.write_text(json.dumps({"rehearsal": False}))
    assert main(["bench", "--device", "cpu", "--only", "silu_mul_int8", "--out", str(out)]) == 2
    assert "give it another name" in capsys.readouterr().err and json.loads(out.read_text()) == {"rehearsal": False}


def test_a_library_that_was_asked_for_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cpu", "--vllm-library", "/nowhere/_C.so"]) == 2
    assert "/nowhere/_C.so cannot be loaded" in capsys.readouterr().err


def test_a_wrong_kernel_is_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.ops.burrstone, "silu_mul_int8", Planted("silu_mul_int8", lambda *_: None))
    out = tmp_path / "results.json"
    assert main(["bench", "--device", "cpu", "--only", "silu_mul_int8", "--out", str(out)]) == 1
    assert "wrong, and not timed: silu_mul_int8" in capsys.readouterr().err
    assert "**wrong**" in out.with_suffix(".md").read_text() and json.loads(out.read_text())["cases"] == []


def test_a_run_that_is_stopped_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, out = module._case, tmp_path / "results.json"

    def case(*arguments: Any) -> Any:
        if out.exists() and json.loads(out.read_text())["cases"]:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_case", case)
    assert main(["bench", "--device", "cpu", "--only", "silu_mul_int8", "--out", str(out)]) == 130
    results = json.loads(out.read_text())
    jsonschema.validate(results, SCHEMA)
    assert len(results["cases"]) == 1 and not results["complete"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    write_whole(file, "before")

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "after")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_vllms_ops_are_called_as_their_schema_says() -> None:
    library = torch.library.Library("_C", "FRAGMENT")
    library.define("planted(Tensor a, Tensor? zeros_or_none, int size, bool odd=False) -> Tensor")
    library.impl("planted", lambda a, zeros, size, odd=False: a * size, "CPU")
    assert vllm_op("planted", a=torch.ones(2), size=3)().tolist() == [3.0, 3.0]
    with pytest.raises(Absent, match="wants size, which is not known here"):
        vllm_op("planted", a=torch.ones(2))
    with pytest.raises(Absent, match="is not there"):
        vllm_op("gone")


def test_a_function_that_is_compiled_for_many_shapes_is_still_compiled() -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    function = compiled(twice)
    assert all(function(torch.ones(n)).sum() == 2 * n for n in range(2, 14))


def test_the_sanitizer_is_told_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("burrstone.kernels.measure.sanitizer._PLACES", ())
    found = sanitize((), 1, 10.0, said.append)
    assert set(found) == {"memcheck", "racecheck"} and set(said) == {f"{tool}: {what}" for tool, what in found.items()}
    assert all(what.startswith("absent: no compute-sanitizer") for what in found.values())


@pytest.mark.parametrize(("code", "found"), [(0, "clean"), (99, "found: exit code 99: a race")])
def test_the_sanitizer_runs_the_small_shapes(
    code: int, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "compute-sanitizer"
    binary.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nprintf "a race"\nexit {code}\n')
    binary.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _: str(binary))
    assert set(sanitize(["lora"], 5, 60.0, lambda _: None).values()) == {found}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["memcheck", "racecheck"]
    assert all("bench --check-only --quick --no-graph --seed 5 --only lora" in call for call in calls)


@pytest.mark.parametrize(
    ("each_us", "sets", "launches"), [(2.0, 2, 150), (2.0, 32, 160), (1000.0, 3, 3), (0.01, 4, 256)]
)
def test_a_sample_is_whole_turns(each_us: float, sets: int, launches: int) -> None:
    assert timing.launches_for(each_us, sets) == launches
