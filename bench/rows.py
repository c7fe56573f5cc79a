"""Results of a measurement: written whole, and printed as JSON or as rows with their goals."""

import json
from pathlib import Path
from typing import Any

from burrstone.bench.files import whole_file


def write(out: Path | None, result: Any) -> None:
    """Write the result as JSON where a file is named."""
    if out is not None:
        with whole_file(out) as scratch:
            scratch.write_text(json.dumps(result, indent=2) + "\n")


def print_rows(rows: dict[str, Any]) -> None:
    """Each figure beside its goal."""
    for name, row in rows.items():
        print(f"{name}: {row['value']:g} (goal {row['goal']}) {'met' if row['ok'] else 'MISSED'}")
