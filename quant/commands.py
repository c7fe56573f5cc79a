"""What `burrstone quantize` does with its arguments."""

import argparse
import json
import math
import signal
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from burrstone.quant.card import record_quality
from burrstone.quant.cases import load_cases
from burrstone.quant.checkpoint import Checkpoint, find_checkpoint
from burrstone.quant.errors import OutOfSpace, QuantizeError
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.job import Job, Result
from burrstone.quant.judging import evaluate_checkpoint
from burrstone.quant.progress import TerminalBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import SMOKE, SMOKE_NOTICE, Split, Tokens, load_tokenizer, load_tokens
from burrstone.quant.verdict import Margins, summary

_EXIT_USAGE = 2
_EXIT_DISK_FULL = 3
_EXIT_INTERRUPTED = 130
_CALIBRATION_ROWS = 128
_TEXT_ROWS = 64
_ROW_TOKENS = 512
_MAKING = (
    *("out", "scheme", "method", "calibration", "observer", "granularity", "strength", "dampening", "keep"),
    *("quantize_lm_head", "mixed_precision", "restart"),
)
_MARGINS = ("margin_perplexity", "margin_kl", "margin_task")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 done, 1 the verdict is a fail, 2 wrong usage, model or data, 3 the disk is full."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Schedulers end a job by SIGTERM; what was done is kept as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if arguments.words[0] == "eval":
            return _evaluate(arguments)
        return _quantize(arguments)
    except OutOfSpace as error:
        print(f"burrstone: {error}", file=sys.stderr)
        return _EXIT_DISK_FULL
    except QuantizeError as error:
        print(f"burrstone: {error}", file=sys.stderr)
        return _EXIT_USAGE
    except KeyboardInterrupt:
        print("burrstone: stopped; the same command goes on from the last whole layer", file=sys.stderr)
        return _EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _quantize(arguments: argparse.Namespace) -> int:
    if len(arguments.words) != 1 or arguments.out is None:
        raise QuantizeError(
            "give one MODEL and -o OUT; to judge a checkpoint: burrstone quantize eval REFERENCE CANDIDATE"
        )
    if not Path(arguments.out).name:
        raise QuantizeError(f"-o {arguments.out!r} names no folder to make")
    _refuse_flags(arguments, ("text", *(() if arguments.mixed_precision else ("cases", *_MARGINS))), "judging")
    recipe, margins = _recipe(arguments), _margins(arguments)
    if not recipe.needs_data and arguments.mixed_precision is None:
        _refuse_flags(arguments, ("rows", "row_tokens"), "text, and this run reads none")
    if Path(arguments.out).exists():  # before hours of work, not after
        raise QuantizeError(f"{arguments.out} exists; remove it or choose another -o")
    source = _checkpoint(arguments, arguments.words[0])
    device = _device(arguments.device)
    tokenizer = load_tokenizer(source.folder)
    tokens = None
    if recipe.needs_data:
        if arguments.calibration is None:
            raise QuantizeError(
                f"method {recipe.method} needs --calibration PATH: text or chat logs like your traffic; `{SMOKE}` to only "
                "try it; or --method rtn, which needs none"
            )
        tokens = _tokens(arguments, arguments.calibration, tokenizer, _CALIBRATION_ROWS, "calibration")
    elif arguments.calibration is not None:
        raise QuantizeError(
            f"--calibration is for methods that need data; {recipe.method} with {recipe.schemes} does not"
        )
    with TerminalBar() as bar:
        until = None
        if arguments.mixed_precision is not None:
            text = _tokens(arguments, arguments.mixed_precision, tokenizer, _TEXT_ROWS, "held-out")
            until = Evaluation(source, _data(arguments, text, tokenizer), bar, margins=margins, device=device)
        result = Job(source, Path(arguments.out), recipe, tokens, bar, device, arguments.restart, until).run()
    print(json.dumps(asdict(result), indent=2) if arguments.json else _told(result, arguments.words[0]))
    return 1 if result.verdict == "fail" else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    if len(arguments.words) != 3:
        raise QuantizeError("give both models: burrstone quantize eval REFERENCE CANDIDATE --text PATH")
    _refuse_flags(arguments, _MAKING, "quantizing")
    if arguments.text is None:
        raise QuantizeError(
            f"give --text PATH: text like your traffic that was not calibrated on; `{SMOKE}` to only try it"
        )
    reference, candidate = (_checkpoint(arguments, word) for word in arguments.words[1:])
    if reference.folder == candidate.folder:
        raise QuantizeError(f"reference and candidate are both {reference.folder}")
    margins, device = _margins(arguments), _device(arguments.device)
    tokenizer = load_tokenizer(reference.folder)
    text = _tokens(arguments, arguments.text, tokenizer, _TEXT_ROWS, "held-out")
    data = _data(arguments, text, tokenizer)
    with TerminalBar() as bar:
        quality = evaluate_checkpoint(reference, candidate, data, bar, margins=margins, device=device)
    # Told first: what took hours is not lost where it cannot be written.
    print(json.dumps(quality, indent=2) if arguments.json else summary(quality))
    record_quality(candidate.folder, quality)
    return 0 if quality["verdict"] == "pass" else 1


def _recipe(arguments: argparse.Namespace) -> Recipe:
    given: dict[str, Any] = {
        field.name: value for field in fields(Recipe) if (value := getattr(arguments, field.name, None)) is not None
    }
    if arguments.scheme is not None:
        given["schemes"] = arguments.scheme
    return Recipe(**given | {"keep": tuple(arguments.keep or ())})


def _checkpoint(arguments: argparse.Namespace, word: str) -> Checkpoint:
    folder = find_checkpoint(arguments.find_model(word))
    return Checkpoint(folder, None if Path(word).expanduser().is_dir() else word)


def _tokens(arguments: argparse.Namespace, source: str, tokenizer: Any, rows: int, split: Split) -> Tokens:
    wanted = rows if arguments.rows is None else arguments.rows
    length = _ROW_TOKENS if arguments.row_tokens is None else arguments.row_tokens
    if wanted < 1 or length < 2:
        raise QuantizeError("--rows is at least 1 and --row-tokens at least 2")
    tokens = load_tokens(source, tokenizer, rows=wanted, length=length, split=split)
    if tokens.smoke:
        print(SMOKE_NOTICE, file=sys.stderr)
    if len(tokens.rows) < wanted:
        print(f"{source}: enough text for {len(tokens.rows)} of {wanted} rows", file=sys.stderr)
    if tokens.whole and split == "calibration" and not tokens.smoke:
        print(
            f"{source}: all of its rows are calibrated on, so none is left to judge on; have other text for that, or give "
            "fewer --rows",
            file=sys.stderr,
        )
    return tokens


def _data(arguments: argparse.Namespace, text: Tokens, tokenizer: Any) -> Data:
    if arguments.cases is None:
        return Data(text)
    return Data(text, load_cases(Path(arguments.cases), tokenizer), arguments.cases)


def _margins(arguments: argparse.Namespace) -> Margins:
    given = {"perplexity": arguments.margin_perplexity, "mean_kl": arguments.margin_kl, "task": arguments.margin_task}
    for name, value in given.items():
        if value is not None and not 0 <= value < math.inf:
            raise QuantizeError(f"--margin-{name.removeprefix('mean_')} is a number from 0 up, got {value}")
    return Margins(**{name: value for name, value in given.items() if value is not None})


def _refuse_flags(arguments: argparse.Namespace, names: tuple[str, ...], purpose: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value is not False:
            raise QuantizeError(f"--{name.replace('_', '-')} is for {purpose}; it would do nothing here")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise QuantizeError(f"--device {name}: only cpu and cuda compute here")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise QuantizeError(f"--device {name}: {str(error).strip().splitlines()[0]}") from error
    return name


def _told(result: Result, model: str) -> str:
    size = f"{result.bytes_after / 2**20:.0f} MiB from {result.bytes_before / 2**20:.0f}"
    cost = f"in {result.elapsed_s:.0f} s, at most {result.peak_memory_bytes / 2**30:.1f} GiB of memory"
    lines = [f"{result.out}: {result.schemes}, {size}, {cost}"]
    if result.worst:
        lines += ["lost most:", *(f"  {row['loss']:.1e}  {row['unit']}" for row in result.worst)]
    if result.kept:
        lines += [f"kept in 16 bits: {len(result.kept)} modules"]
    if result.verdict is not None:
        return "\n".join([*lines, f"verdict: {result.verdict}; more in {result.out}/README.md"])
    return "\n".join([*lines, f"next: burrstone quantize eval {model} {result.out} --text YOUR_TEXT"])
