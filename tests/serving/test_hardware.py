"""What a machine is found to have, on made-up roots."""

import os
from pathlib import Path

import pytest

from burrstone.serving import hardware
from burrstone.serving.hardware import Hardware, detect

CORES = tuple(range(8))
GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with eight cores, 16 GiB of which 10 are available, and no accelerator."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(CORES))
    monkeypatch.setattr(hardware, "_gpus", lambda: ())
    write(tmp_path, "proc/meminfo", f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {10 * GIB // 1024} kB\n")
    write(tmp_path, "proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx512f amx_tile\n\nprocessor : 1\nflags : other\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_plain_machine(root: Path) -> None:
    assert detect(root) == Hardware(
        profile="cpu",
        cores=CORES,
        memory_bytes=10 * GIB,
        cpu_flags=frozenset({"fpu", "avx512f", "amx_tile"}),
        gpus=(),
        neuron_devices=0,
        instance_type="",
    )
    assert detect(root).amx and detect(root).avx512


@pytest.mark.parametrize(
    ("cpu_max", "num_cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("100000 50000", 2),
        ("9900000 100000", 8),
        ("garbage", 8),
        ("", 8),
    ],
)
def test_the_containers_cpu_quota_cuts_the_cores(root: Path, cpu_max: str, num_cores: int) -> None:
    write(root, "sys/fs/cgroup/cpu.max", cpu_max)
    assert detect(root).cores == CORES[:num_cores]


@pytest.mark.parametrize(
    ("limit", "current", "gib"),
    [
        ("max", "0", 10),
        (str(4 * GIB), str(1 * GIB), 3),
        (str(64 * GIB), str(1 * GIB), 10),
        (str(1 * GIB), str(2 * GIB), 0),
    ],
)
def test_the_containers_memory_limit_cuts_the_memory(root: Path, limit: str, current: str, gib: int) -> None:
    write(root, "sys/fs/cgroup/memory.max", f"{limit}\n")
    write(root, "sys/fs/cgroup/memory.current", f"{current}\n")
    assert detect(root).memory_bytes == gib * GIB


@pytest.mark.parametrize(
    ("instance", "profile"),
    [
        ("inf2.xlarge", "neuron-inf2"),
        ("trn1.2xlarge", "neuron-trn1"),
        ("trn1n.32xlarge", "neuron-trn1"),
        ("trn2.48xlarge", "neuron-trn2"),
        ("", "neuron-trn2"),
    ],
)
def test_neuron_devices_decide_and_the_machine_says_which(root: Path, instance: str, profile: str) -> None:
    for number in range(2):
        write(root, f"dev/neuron{number}", "")
    write(root, "dev/neuron_control", "")
    if instance:
        write(root, "sys/devices/virtual/dmi/id/product_name", f"{instance}\n")
    found = detect(root)
    assert (found.profile, found.neuron_devices, found.instance_type) == (profile, 2, instance)


def test_the_instance_type_alone_is_no_device(root: Path) -> None:
    write(root, "sys/devices/virtual/dmi/id/product_name", "inf2.xlarge\n")
    assert detect(root).profile == "cpu"


def test_a_gpu_wins(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "dev/neuron0", "")
    monkeypatch.setattr(hardware, "_gpus", lambda: ("NVIDIA X, 80 GiB",))
    assert detect(root).profile == "cuda"


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("printf 'NVIDIA A, 40960 MiB\\n\\nNVIDIA B, 81920 MiB\\n'", ("NVIDIA A, 40960 MiB", "NVIDIA B, 81920 MiB")),
        ("echo 'No devices were found'; exit 6", ()),
    ],
)
def test_gpus_are_what_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, gpus: tuple[str, ...]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert hardware._gpus() == gpus


def test_no_driver_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware._gpus() == ()
