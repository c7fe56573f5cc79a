"""`python -m burrstone.bench.headline README.md`: the README's table, from the newest results in bench/results."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from burrstone.batching.errors import UsageError
from burrstone.bench.files import whole_file
from burrstone.bench.peers.side_by_side import REQUESTS

RESULTS = Path(__file__).parent / "results"
_BEGIN, _END = "<!-- figures: written by `make figures` -->", "<!-- end of figures -->"


def newest(kind: str) -> tuple[str, dict[str, Any]]:
    """File name and content of the latest result of a kind. Raises UsageError where there is none."""
    files = sorted(RESULTS.glob(f"{kind}-[0-9]*.json"))
    if not files:
        raise UsageError(f"there is no {kind}-*.json in {RESULTS}")
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
    yield f"| noise between rounds | {' | '.join('-' if share is None else f'{share:.0%}' for share in noise)} | |"


def _goals(rows: Mapping[str, Any], file: str) -> Iterator[str]:
    for name, row in rows.items():
        met = "met" if row["ok"] else "**missed**"
        yield f"| {name.replace('_', ' ')} | {row['value']:g} | {row['goal']}, {met} | `{file}` |"


def written(text: str) -> str:
    """The text with its figures brought up to date. Raises UsageError where it has no place for them."""
    if _BEGIN not in text or _END not in text:
        raise UsageError(f"there is no place for the figures: {_BEGIN} ... {_END}")
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    return f"{text[:begin]}\n{figures()}\n{text[end:]}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m burrstone.bench.headline", description="Bring a page's figures up to date, from bench/results."
    )
    parser.add_argument("page", type=Path, metavar="FILE", help="README.md, or another with their marks in it")
    page: Path = parser.parse_args(words).page
    try:
        text = written(page.read_text())
        with whole_file(page) as scratch:
            scratch.write_text(text)
    except (OSError, UsageError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
