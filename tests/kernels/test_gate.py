"""The compile gate: what it refuses, and that every kernel passes it on every target."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_kernels import byte_kernel, hoarding_kernel, product_kernel

from burrstone.kernels.builds import Build
from burrstone.kernels.check import Figures, differences
from burrstone.kernels.gate import TARGETS, compiled, faults


def build(kernel: object, types: dict[str, str], constants: dict[str, int], **more: object) -> Build:
    made = {"name": "planted", "kernel": kernel, "types": types, "constants": constants, "num_warps": 4}
    return Build(**(made | {"aligned": frozenset(types)} | more))  # type: ignore[arg-type]


HOARDING = build(hoarding_kernel, {"out_ptr": "*fp32", "x_ptr": "*fp32"}, {"BLOCK": 65536})
PRODUCT = build(
    product_kernel,
    {"out_ptr": "*i32", "a_ptr": "*i8", "b_ptr": "*i8", "k": "i32"},
    {"BLOCK": 128, "BLOCK_K": 128},
    tensor_cores=True,
)
BYTES = build(byte_kernel, {"out_ptr": "*fp32", "x_ptr": "*i8"}, {"BLOCK": 1024})


def told(planted: Build, target: str) -> str:
    return "; ".join(faults(planted, TARGETS[target], compiled(planted, TARGETS[target])))


@pytest.mark.parametrize(
    ("planted", "target", "fault"),
    [
        (HOARDING, "sm90", "spilled"),
        (replace(HOARDING, constants={"BLOCK": 131072}), "gfx942", "spilled"),
        (replace(PRODUCT, max_registers=32), "sm90", "registers, more than 32"),
        (replace(PRODUCT, num_stages=5), "sm89", "bytes of shared memory, of 101376"),
        (replace(PRODUCT, num_warps=32), "gfx942", "2048 threads, of 1024"),
        (replace(BYTES, tensor_cores=True), "sm80", "no tensor-core instruction"),
        (BYTES, "sm90", "loads of single bytes"),
    ],
)
def test_what_is_refused(planted: Build, target: str, fault: str) -> None:
    assert fault in told(planted, target)


def test_what_is_not() -> None:
    assert told(PRODUCT, "sm90") == ""
    assert compiled(PRODUCT, TARGETS["sm90"])["instructions"].get("IGMMA")


@pytest.mark.parametrize("version", ["the one that is installed", "3.6.0"])
def test_every_kernel_passes_everywhere(version: str) -> None:
    """The command, as CI and users call it; and with the oldest Triton that kernels run with."""
    folder = Path(__file__).parents[2] / ".triton" / version
    if version == "3.6.0" and not folder.is_dir():
        pytest.skip("Triton 3.6.0 is not beside the environment; `make test` puts it there")
    environ = os.environ | ({"PYTHONPATH": str(folder)} if folder.is_dir() else {})
    command = [sys.executable, "-m", "burrstone.serving.cli.main", "kernels", "check", "--json"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    result = json.loads(run.stdout)
    assert result["failures"] == [] and result["targets"] == ["sm80", "sm89", "sm90", "sm100", "gfx942"]
    assert result["golden"] == f"triton-{result['triton']}.json"
    assert (result["triton"] == "3.6.0") is folder.is_dir()


def test_a_changed_figure_is_told() -> None:
    old: Figures = {"a": {"sm80": {"registers": 40, "instructions": {"IMMA": 8}}, "sm90": {"registers": 1}}}
    new: Figures = {"a": {"sm80": {"registers": 48, "instructions": {"LDGSTS": 2}}}, "b": {"sm90": {"registers": 3}}}
    assert list(differences(old, new)) == [
        "a on sm80: IMMA 8 -> 0, LDGSTS 0 -> 2, registers 40 -> 48; see --update-golden",
        "a on sm90: gone; see --update-golden",
        'b on sm90: new: {"registers": 3}; see --update-golden',
    ]
