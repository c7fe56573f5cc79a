"""Results of a measurement: written whole, and printed as JSON or as rows with their goals."""

import json
from pathlib import Path
from typing import Any

from burrstone.batching.sim.targets.judge import met
from burrstone.bench.files import whole_file


def write(out: Path | None, result: Any) -> None:
    """Write the result as JSON where a file is named."""
    if out is not None:
        with whole_file(out) as scratch:
            scratch.write_text(json.dumps(result, indent=2) + "\n")


def lines_of(rows: dict[str, Any]) -> list[str]:
    """Each figure beside its goal."""
    return [
        f"{name}: {row['value']:g} (goal {row['goal']}) {'met' if row['ok'] else 'MISSED'}"
        for name, row in rows.items()
    ]


def tell_rows(rows: dict[str, Any], out: Path | None, *, as_json: bool) -> int:
    """Write, print, and judge those that have a goal; the exit code."""
    write(out, rows)
    judged = {name: row for name, row in rows.items() if "ok" in row}
    print(json.dumps(rows, indent=2) if as_json else "\n".join(lines_of(judged)))
    return 0 if met(judged) else 1
