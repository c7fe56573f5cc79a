"""Results of a measurement: written whole, and printed as JSON or as rows with their goals."""

import json
from pathlib import Path
from typing import Any


def write(out: Path | None, result: Any) -> None:
    """Write the result as JSON where a file is named."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")


def print_rows(rows: dict[str, Any]) -> None:
    """Each figure beside its goal."""
    for name, row in rows.items():
        print(f"{name}: {row['value']:g} (goal {row['goal']}) {'met' if row['ok'] else 'MISSED'}")
