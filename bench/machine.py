"""Where a measurement was taken: what a reader needs to know to compare it with another."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from burrstone.serving.hardware import detect


def machine() -> dict[str, Any]:
    """Date, hardware and versions, as JSON values."""
    hardware = detect()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "profile": hardware.profile,
        "cores": len(hardware.cores),
        "amx": hardware.amx,
        "gpus": list(hardware.gpus),
        "python": platform.python_version(),
        "vllm": _vllm_version(),
        "ray": version("ray"),
    }


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)
