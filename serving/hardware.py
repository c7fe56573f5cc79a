"""What this machine has. Standard library only: the installer runs it before anything is installed."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEURON_FAMILIES = {"inf2": "neuron-inf2", "trn1": "neuron-trn1", "trn2": "neuron-trn2"}


@dataclass(frozen=True)
class Hardware:
    """`profile` is cpu, cuda, neuron-inf2, neuron-trn1 or neuron-trn2. `cores` are the CPU ids we may use."""

    profile: str
    cores: tuple[int, ...]
    memory_bytes: int
    cpu_flags: frozenset[str]
    gpus: tuple[str, ...]
    neuron_devices: int
    instance_type: str  # the cloud's name for the machine, "" when it does not say

    @property
    def amx(self) -> bool:
        return "amx_tile" in self.cpu_flags

    @property
    def avx512(self) -> bool:
        return "avx512f" in self.cpu_flags


def detect(root: Path = Path("/")) -> Hardware:
    """Look at the machine; `root` stands in for / in tests."""
    gpus = _gpus()
    neuron_devices = len(list((root / "dev").glob("neuron[0-9]*")))
    instance_type = _instance_type(root)
    if gpus:
        profile = "cuda"
    elif neuron_devices:
        profile = _neuron_profile(instance_type)
    else:
        profile = "cpu"
    return Hardware(
        profile=profile,
        cores=_cores(root),
        memory_bytes=_memory_bytes(root),
        cpu_flags=_cpu_flags(root),
        gpus=gpus,
        neuron_devices=neuron_devices,
        instance_type=instance_type,
    )


def _gpus() -> tuple[str, ...]:
    """Name and memory of each GPU, as the driver says; importing torch to ask would take seconds."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        reply = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in reply.stdout.splitlines() if line.strip())


def _instance_type(root: Path) -> str:
    try:
        return (root / "sys/devices/virtual/dmi/id/product_name").read_text().strip()
    except OSError:
        return ""


def _neuron_profile(instance_type: str) -> str:
    """By the instance's family; where it cannot be read (some containers hide it), the newest: nothing else fits it."""
    for family, profile in _NEURON_FAMILIES.items():
        if instance_type.startswith(family):
            return profile
    return "neuron-trn2"


def _cores(root: Path) -> tuple[int, ...]:
    """Usable cores: the affinity mask, cut to the container's CPU quota."""
    cores = sorted(os.sched_getaffinity(0))
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return tuple(cores)
    if quota != "max":
        cores = cores[: max(1, int(quota) // int(period))]
    return tuple(cores)


def _memory_bytes(root: Path) -> int:
    """Memory that can still be used: the machine's available memory, cut to the container's limit."""
    available = 0
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    try:
        limit = (root / "sys/fs/cgroup/memory.max").read_text().strip()
        used = int((root / "sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else max(0, min(available, int(limit) - used))


def _cpu_flags(root: Path) -> frozenset[str]:
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
