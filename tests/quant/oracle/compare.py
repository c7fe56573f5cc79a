"""`make quant-oracle`: our quantizer beside llm-compressor, same model, same calibration rows, judged by the same evaluation.

llm-compressor pins another compressed-tensors than vLLM, so it lives in an environment of its own, .venv-oracle. Needs the
network once; takes minutes to an hour by the number of rows. Prints a table, and writes the figures with --out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.job import Job
from burrstone.quant.progress import TerminalBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import load_tokens
from burrstone.serving.engine.models import embedded_model

ENVIRONMENT = Path(__file__).parents[3] / ".venv-oracle"
PINS = ("torch==2.13.0", "llmcompressor==0.14.0.1")
METHODS = ("rtn", "smoothquant", "gptq", "smoothquant+gptq")
# Theirs smooths with one strength for all; ours searches unless told. Both are shown.
STRENGTH = 0.8
_FIGURES = ("perplexity_ratio", "mean_kl", "top1_agreement", "verdict")


def main() -> int:
    arguments = _arguments()
    source = Checkpoint(embedded_model(Path("~/.cache/burrstone").expanduser()))
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    rows, length = arguments.rows, arguments.row_tokens
    calibration = load_tokens("smoke", tokenizer, rows=rows, length=length, split="calibration")
    text = load_tokens("smoke", tokenizer, rows=arguments.text_rows, length=length, split="held-out")
    python = _their_python()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="burrstone-oracle-") as scratch, TerminalBar() as bar:
        evaluation = Evaluation(source, Data(text), bar)
        rows_file = Path(scratch) / "rows.json"
        rows_file.write_text(json.dumps(calibration.rows.tolist()))
        for method in METHODS:
            theirs = Path(scratch) / f"theirs-{method}"
            command = [python, Path(__file__).with_name("their_side.py"), source.folder, theirs, method, rows_file]
            subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
            made = {"llm-compressor": theirs}
            for name, strength in (("burrstone", None), ("burrstone, strength 0.8", STRENGTH)):
                recipe = Recipe(method=method, strength=strength if method.startswith("smooth") else None)
                if strength is None or recipe.strength is not None:
                    made[name] = Path(scratch) / f"{name}-{method}"
                    Job(source, made[name], recipe, calibration if recipe.needs_data else None, bar).run()
            for name, folder in made.items():
                quality = evaluation.compare(Checkpoint(folder))
                found[f"{method}: {name}"] = {key: quality[key] for key in _FIGURES}
            found[f"{method}: burrstone"]["values_that_differ"] = _differing(made["burrstone"], theirs)
    result = {"date": datetime.now(UTC).date().isoformat(), "pins": PINS, "rows": [rows, length], "found": found}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(_table(found))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64, help="calibration rows [%(default)s]")
    parser.add_argument("--text-rows", type=int, default=32, help="rows to judge on [%(default)s]")
    parser.add_argument("--row-tokens", type=int, default=256, help="tokens in each [%(default)s]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here as JSON")
    return parser.parse_args()


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
    their_tensors: dict[str, torch.Tensor] = {}
    for file in theirs.glob("*.safetensors"):
        their_tensors |= load_file(file)
    made = Checkpoint(ours)
    for name in made.names:
        tensor = made.tensor(name)
        if tensor.dtype == torch.int8:
            differing += int((tensor != their_tensors[name]).sum())
            total += tensor.numel()
    return differing / total


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| Method: by | Perplexity | Mean KL | First choices | INT8 values that differ |", "|---|---|---|---|---|"]
    for name, row in found.items():
        differ = f"{row['values_that_differ']:.2%}" if "values_that_differ" in row else ""
        figures = f"x{row['perplexity_ratio']:.4f} | {row['mean_kl']:.4f} | {row['top1_agreement']:.1%}"
        lines.append(f"| {name} | {figures} | {differ} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
