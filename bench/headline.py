"""`python -m burrstone.bench.headline README.md`: the README's table, from the newest results in bench/results."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from burrstone.bench.peers.side_by_side import REQUESTS

RESULTS = Path(__file__).parent / "results"
_BEGIN, _END = "<!-- figures: written by `make figures` -->", "<!-- end of figures -->"


def newest(kind: str) -> tuple[str, dict[str, Any]]:
    """File name and content of the latest result of a kind. Raises FileNotFoundError where there is none."""
    files = sorted(RESULTS.glob(f"{kind}-[0-9]*.json"))
    if not files:
        raise FileNotFoundError(f"there is no {kind}-*.json in {RESULTS}")
    return files[-1].name, json.loads(files[-1].read_text())


def figures() -> str:
    """Markdown: tokens per second of all peers, and every goal with what was reached."""
    peers_file, peers = newest("peers")
    features_file, features = newest("features")
    setting = peers["setting"]
    where = (
        f"{setting['date']}, {setting['cores']} cores {'with' if setting['amx'] else 'without'} AMX, {setting['model']}"
    )
    return "\n".join(
        [
            f"{where}, {setting['input_tokens']} tokens in and {setting['output_tokens']} out, each server alone on the machine,",
            f"medians of {setting['rounds']} rounds. Output tokens/s, in brackets TTFT p50:",
            "",
            *_peers(peers),
            "",
            "| Figure | Reached | Goal | |",
            "|---|---|---|---|",
            *_goals(peers["ratios"], peers_file),
            *_goals({name: row for name, row in features.items() if "goal" in row}, features_file),
        ]
    )


def _peers(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| | " + " | ".join(f"{streams} stream{'s' if streams > 1 else ''}" for streams in REQUESTS) + " | Precision |"
    )
    yield "|---|" + "---|" * (len(REQUESTS) + 1)
    for name, peer in result["peers"].items():
        rows = [peer["streams"][str(streams)] for streams in REQUESTS]
        cells = [f"{row['output_throughput']:.0f} ({row['median_ttft_ms']:.0f} ms)" for row in rows]
        yield f"| {name} | {' | '.join(cells)} | {peer['precision']} |"
    noise = [result["noise"][str(streams)] for streams in REQUESTS]
    yield f"| noise between rounds | {' | '.join(f'{share:.0%}' for share in noise)} | |"


def _goals(rows: Mapping[str, Any], file: str) -> Iterator[str]:
    for name, row in rows.items():
        met = "met" if row["ok"] else "**missed**"
        yield f"| {name.replace('_', ' ')} | {row['value']:g} | {row['goal']}, {met} | `{file}` |"


def written(text: str) -> str:
    """The text with its figures brought up to date. Raises ValueError where it has no place for them."""
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    return f"{text[:begin]}\n{figures()}\n{text[end:]}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(written(page.read_text()))
