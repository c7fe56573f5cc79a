"""`make quant-oracle`: every method on one model, judged by one evaluation; beside llm-compressor on the same calibration rows.

llm-compressor pins another compressed-tensors than vLLM, so it lives in an environment of its own, .venv-oracle, which
needs the network once. Takes about half an hour on two cores. Prints a table; with --out the figures are kept, and added
to what that file holds of other models. docs/quantization.md holds the table that --table FILE prints.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.job import Job
from burrstone.quant.progress import TerminalBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import Tokens, load_tokens
from burrstone.serving.engine.models import embedded_model

ENVIRONMENT = Path(__file__).parents[3] / ".venv-oracle"
PINS = ("torch==2.13.0", "llmcompressor==0.14.0.1")
METHODS = ("rtn", "gptq", "smoothquant", "smoothquant+gptq")
# Theirs smooths with one strength for all; ours searches unless told. Both are shown.
STRENGTH = 0.8
_FIGURES = ("perplexity_ratio", "mean_kl", "top1_agreement", "verdict")
OURS, OURS_TOLD, THEIRS = "burrstone", f"burrstone, strength {STRENGTH}", "llm-compressor"


def main() -> int:
    arguments = _arguments()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())))
        return 0
    kept = json.loads(arguments.out.read_text()) if arguments.out is not None and arguments.out.exists() else {}
    result = kept | {"date": datetime.now(UTC).date().isoformat(), "pins": PINS, "setting": _setting(arguments)}
    rows = result.setdefault("rows", [])
    for row in _measure(arguments):
        rows[:] = [old for old in rows if _key(old) != _key(row)] + [row]
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="[the embedded one]")
    parser.add_argument("--ours-only", action="store_true", help="without llm-compressor")
    parser.add_argument("--rows", type=int, default=64, help="calibration rows [%(default)s]")
    parser.add_argument("--text-rows", type=int, default=32, help="rows to judge on [%(default)s]")
    parser.add_argument("--row-tokens", type=int, default=256, help="tokens in each [%(default)s]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing; print such a file as a table")
    return parser.parse_args()


def _setting(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "calibration": ["smoke", arguments.rows, arguments.row_tokens],
        "text": ["smoke, held out", arguments.text_rows, arguments.row_tokens],
        "threads": torch.get_num_threads(),
    }


def _measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    source = Checkpoint(arguments.model or embedded_model(Path("~/.cache/burrstone").expanduser()))
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    length = arguments.row_tokens
    calibration = load_tokens("smoke", tokenizer, rows=arguments.rows, length=length, split="calibration")
    text = load_tokens("smoke", tokenizer, rows=arguments.text_rows, length=length, split="held-out")
    with tempfile.TemporaryDirectory(prefix="burrstone-oracle-") as name, TerminalBar() as bar:
        scratch = Path(name)
        evaluation = Evaluation(source, Data(text), bar)
        for method in METHODS:
            made: dict[str, tuple[Path, float]] = {}
            if not arguments.ours_only:
                made[THEIRS] = _theirs(source.folder, method, calibration, scratch)
            for by, strength in ((OURS, None), (OURS_TOLD, STRENGTH)):
                if strength is None or method.startswith("smooth"):
                    recipe = Recipe(method=method, strength=strength)
                    tokens = calibration if recipe.needs_data else None
                    done = Job(source, scratch / f"{by}-{method}", recipe, tokens, bar).run()
                    made[by] = Path(done.out), done.elapsed_s
            for by, (folder, elapsed_s) in made.items():
                differing = _differing(folder, made[THEIRS][0]) if THEIRS in made and by != THEIRS else None
                quality = evaluation.compare(Checkpoint(folder))
                yield {
                    "model": source.folder.name,
                    "method": method,
                    "by": by,
                    **{figure: quality[figure] for figure in _FIGURES},
                    "greedy_prefix": quality["greedy"]["mean_prefix"],
                    "elapsed_s": elapsed_s,
                    "values_that_differ": differing,
                }


def _theirs(source: Path, method: str, calibration: Tokens, scratch: Path) -> tuple[Path, float]:
    rows_file = scratch / "rows.json"
    rows_file.write_text(json.dumps(calibration.rows.tolist()))
    out = scratch / f"theirs-{method}"
    command = [_their_python(), Path(__file__).with_name("their_side.py"), source, out, method, rows_file]
    started_s = time.monotonic()
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    return out, round(time.monotonic() - started_s, 1)


@functools.cache
def _their_python() -> Path:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([str(python), "-m", "pip", "install", "-q", *PINS], check=True, env=clean, stdout=sys.stderr)
    return python


def _differing(ours: Path, theirs: Path) -> float:
    """The share of INT8 values in which two checkpoints differ."""
    differing = total = 0
    other, made = Checkpoint(theirs), Checkpoint(ours)
    for name in made.names:
        tensor = made.tensor(name)
        if tensor.dtype == torch.int8:
            differing += int((tensor != other.tensor(name)).sum())
            total += tensor.numel()
    return differing / total


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["method"], row["by"]


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| Model | Method | By | Perplexity | Mean KL | First choices | Greedy in common | Other INT8 values | Seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        differ = "" if row["values_that_differ"] is None else f"{row['values_that_differ']:.1%}"
        figures = f"x{row['perplexity_ratio']:.4f} | {row['mean_kl']:.4f} | {row['top1_agreement']:.1%}"
        rest = f"{row['greedy_prefix']:.1f} of 32 | {differ} | {row['elapsed_s']:.0f}"
        lines.append(f"| {row['model']} | {row['method']} | {row['by']} | {figures} | {rest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
