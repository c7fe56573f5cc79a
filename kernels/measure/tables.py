"""The tables of tuned tiles: which kernels have one, and how rows get into it."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burrstone.kernels import select
from burrstone.kernels.measure.device import Unusable
from burrstone.kernels.measure.files import write_json
from burrstone.kernels.registry import KERNELS

Row = Mapping[str, Any]


@functools.cache
def tunable() -> tuple[str, ...]:
    """Those that ask which tile to use."""
    return tuple(name for name, module in KERNELS.items() if getattr(module, "select", None) is select.select)


def merge(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """Put rows into a kernel's table, in the place of others of the same architecture and shape; all the rest stays. Raises OSError,
    and Unusable for a file that is no table."""
    file = folder / f"{name}.json"
    kept = {_key(row): row for row in read(file)} | {_key(row): row for row in rows}
    write_json(file, {"rows": [kept[key] for key in sorted(kept)]})
    select.forget()
    return file


def read(file: Path) -> list[Row]:
    """Raises Unusable for a file that is no table."""
    if not file.is_file():
        return []
    try:
        rows: list[Row] = json.loads(file.read_text())["rows"]
        for row in rows:
            _key(row)
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"{file} is no table of tiles: {type(error).__name__}: {error}") from error
    return rows


def _key(row: Row) -> tuple[Any, ...]:
    return row["arch"], row["n"], row["k"], row["m"]
