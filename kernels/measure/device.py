"""Where it is measured: what a reader must know to compare a figure with another, and the errors of what is not there."""

import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
import triton

from burrstone.kernels.library import arch_of

# Those whose goals were set; elsewhere figures are told and not judged.
_JUDGED = ("sm90",)
# Where the device does not tell.
_L2_BYTES = 64 * 2**20


class Unusable(Exception):
    """What is asked for cannot be done here, and why."""


@dataclass(frozen=True, slots=True)
class Device:
    """`rehearsal`: on a CPU, where everything is done and nothing means anything."""

    torch: torch.device
    rehearsal: bool

    @property
    def arch(self) -> str:
        return "cpu" if self.rehearsal else arch_of(self.torch)

    @property
    def judged(self) -> bool:
        return self.arch in _JUDGED

    @property
    def l2_bytes(self) -> int:
        if self.rehearsal:
            return 0
        return int(getattr(torch.cuda.get_device_properties(self.torch), "L2_cache_size", 0)) or _L2_BYTES

    def settle(self) -> None:
        """Until all that was launched is done. Raises what it failed with."""
        if not self.rehearsal:
            torch.cuda.synchronize(self.torch)

    def lost(self) -> bool:
        """Whether a fault was of the kind after which nothing more runs in this process."""
        try:
            self.settle()
        except RuntimeError:
            return True
        return False

    def free(self) -> None:
        if not self.rehearsal:
            torch.cuda.empty_cache()


def find(name: str) -> Device:
    """name: "cuda" or "cpu". Raises Unusable."""
    if name == "cpu":
        return Device(torch.device("cpu"), rehearsal=True)
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "PyTorch sees no GPU" if built else f"PyTorch {torch.__version__} is built for CPUs alone"
        raise Unusable(f"a GPU is needed, and {why}; `--device cpu` rehearses everything without one, with tiny shapes")
    return Device(torch.device("cuda", torch.cuda.current_device()), rehearsal=False)


def described(device: Device) -> dict[str, Any]:
    """As JSON values."""
    return {
        "device": platform.processor() or platform.machine()
        if device.rehearsal
        else torch.cuda.get_device_name(device.torch),
        "arch": device.arch,
        "driver": None if device.rehearsal else _driver(),
        "torch": str(torch.__version__),
        "triton": str(triton.__version__),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
