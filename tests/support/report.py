"""The soak run's figures: printed always, kept only where asked."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from burrstone.serving.hardware import detect


class Report:
    """Figures by name. A file that is there already keeps the names that are not recorded anew."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def record(self, name: str, figures: dict[str, Any]) -> None:
        print(f"\n{name}: {json.dumps(figures)}")
        if self._path is None:
            return
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        kept |= {"date": time.strftime("%Y-%m-%d"), "device": _device(), "command": "make soak RESULTS=FILE"}
        kept.setdefault("results", {})[name] = figures
        self._path.write_text(json.dumps(kept, indent=2) + "\n")


def _device() -> str:
    hardware = detect()
    amx = ", AMX" if hardware.amx else ""
    memory = f"{hardware.memory_bytes / 2**30:.0f} GiB"
    return f"{hardware.profile}, {len(hardware.cores)} cores{amx}, {memory}, {platform.system()} {os.uname().release}"
