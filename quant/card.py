"""The model card: what was done, how to do it again, and what is known of the result."""

import json
import shlex
from pathlib import Path
from typing import Any

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.disk import write_text
from burrstone.quant.quality import write_quality
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import SMOKE_NOTICE, Tokens
from burrstone.quant.verdict import summary

VERDICT_START, VERDICT_END = "<!-- verdict -->", "<!-- /verdict -->"
_NO_VERDICT = (
    "Not evaluated yet. `burrstone quantize eval REFERENCE THIS_FOLDER --text YOUR_TEXT` writes the verdict here."
)
_RUNS_ON = {
    "w8a8-int8": "vLLM 0.32 on CUDA (compute capability 7.5 and later) and on x86 CPUs",
    "w8a16-int8": "vLLM 0.32 on CUDA; its CPU backend has no kernel for 8-bit weights alone",
    "bnb-int8": "burrstone's engine, and transformers with bitsandbytes",
    "neuron-int8": "NxD Inference on Inferentia2 and Trainium1. UNVERIFIED: never loaded on such a device",
    "kv-int8": "CUDA alone: the CPU backend of vLLM 0.32 computes wrong output with an INT8 KV cache",
}


def command_line(
    source: str, out: str, recipe: Recipe, tokens: Tokens | None, until: dict[str, Any] | None = None
) -> str:
    """The command that makes the same bytes from the same source, data, versions and number of threads."""
    words = ["burrstone", "quantize", source, "-o", out, "--scheme", recipe.schemes]
    if recipe.scheme is not None:
        words += ["--method", recipe.method, "--observer", recipe.observer, "--granularity", recipe.granularity]
    if recipe.strength is not None:
        words += ["--strength", str(recipe.strength)]
    if recipe.compensates:
        words += ["--dampening", str(recipe.dampening)]
    for pattern in recipe.keep:
        words += ["--keep", pattern]
    if recipe.quantize_lm_head:
        words += ["--quantize-lm-head"]
    if tokens is not None and recipe.needs_data:
        words += ["--calibration", tokens.name]
    if until is not None:
        words += ["--mixed-precision", until["text"]["name"]]
        words += ["--cases", until["cases"]] if until["cases"] is not None else []
        for name, flag in (("perplexity", "perplexity"), ("mean_kl", "kl"), ("task", "task")):
            words += [f"--margin-{flag}", str(until["margins"][name])]
    if recipe.needs_data or until is not None:
        # One pair of flags for both texts; they are cut alike unless a program asked otherwise.
        rows, length = tokens.rows.shape if tokens is not None and recipe.needs_data else (until or {})["text"]["shape"]
        words += ["--rows", str(rows), "--row-tokens", str(length)]
    return shlex.join(words)


def model_card(
    source: Checkpoint, recipe: Recipe, tokens: Tokens | None, run: dict[str, Any], losses: str, kept: list[str]
) -> str:
    """README.md of the checkpoint, in Hugging Face's form. `losses`: Markdown about the units."""
    name = source.name
    base = [f"base_model: {name}"] if "/" in name else []
    lines = [
        "---",
        "library_name: vllm",
        *base,
        "tags: [int8, burrstone]",
        "---",
        "",
        f"# {name}, {recipe.schemes}",
        "",
    ]
    if tokens is not None and tokens.smoke and recipe.needs_data:
        lines += [f"> **{SMOKE_NOTICE}**", ""]
    runs_on = "\n".join(f"- `{scheme}`: {_RUNS_ON[scheme]}." for scheme in recipe.schemes.split("+"))
    data = "none: this method needs no data" if run["calibration"] is None else _data(run["calibration"])
    lines += [
        "Quantized by burrstone from the model named below, whose licence and card still hold.",
        "",
        "## Where it runs",
        "",
        runs_on,
        "",
        "## Verdict",
        "",
        VERDICT_START,
        _NO_VERDICT,
        VERDICT_END,
        "",
        "## How to make it again",
        "",
        "```",
        command_line(name, f"{name.rpartition('/')[2]}-{recipe.schemes}", recipe, tokens, run.get("until")),
        "```",
        "",
        f"- Source: {name}, weights and configuration `{run['source_digest']}`",
        f"- Calibration: {data}",
        f"- Versions: {', '.join(f'{package} {version}' for package, version in run['versions'].items())}",
        f"- Threads: {run['threads']} on {run['device']}; another number may change the last bit of a sum",
        "",
        "Everything that decided a byte is in `quantization.json`, with what each unit lost.",
        "",
    ]
    if recipe.scheme is not None:
        lines += ["## What was lost, by unit", "", losses, ""]
        lines += [f"Left as they were: {', '.join(f'`{module}`' for module in kept) or 'none of the layers'}.", ""]
    return "\n".join(lines)


def loss_table(worst: list[dict[str, Any]]) -> str:
    """The units that lost most. loss: mean squared error of a unit's output over its mean square."""
    rows = [f"| `{row['unit']}` | {row['loss']:.2e} |" for row in worst]
    return "\n".join(["| unit | loss |", "|---|---|", *rows])


def with_verdict(card: str, text: str) -> str:
    """The card with another verdict in it; a card without a place for one gets it at the end."""
    before, start, rest = card.rpartition(VERDICT_START)
    _, end, after = rest.partition(VERDICT_END)
    if not start or not end:
        return f"{card.rstrip()}\n\n## Verdict\n\n{VERDICT_START}\n{text}\n{VERDICT_END}\n"
    return f"{before}{VERDICT_START}\n{text}\n{VERDICT_END}{after}"


def record_quality(folder: Path, quality: dict[str, Any]) -> None:
    """Write quality.json, and then the verdict into the card. quality: as for `write_quality`. Raises QuantizeError."""
    write_quality(folder, quality)
    card = folder / "README.md"
    before = card.read_text(encoding="utf-8", errors="replace") if card.exists() else f"# {folder.name}\n"
    write_text(card, with_verdict(before, summary(quality)))


def calibration_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint was calibrated on, as its quantization.json says; nothing for one that another tool made."""
    try:
        made = json.loads((folder / "quantization.json").read_text())
        return dict(made["calibration"] or {})
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _data(calibration: dict[str, Any]) -> str:
    rows, length = calibration["shape"]
    return f"{calibration['name']}, {rows} rows of {length} tokens, `{calibration['digest']}`"
