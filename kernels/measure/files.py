"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(file: Path, content: str | bytes) -> None:
    """What was there before stays until this is complete. Its folder is made. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    write_whole(file, json.dumps(content, indent=1, allow_nan=False) + "\n")
