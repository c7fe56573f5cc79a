"""quality.json: what an evaluation found, bound to the weights it was found on. Loads neither torch nor transformers.

The file is no signature against an attacker, who could write another. It says which bytes were judged: any change to
weights, configuration or tokenizer after the evaluation, by accident or by hand, shows.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from burrstone.quant.disk import write_text

QUALITY_FILE = "quality.json"
# 2: cases are judged by Tango's interval, and bnb-int8 as the engine computes it.
FORMAT_VERSION = 2
_SELF = "digest"
# What tells of a checkpoint and may change without changing it.
_ABOUT = (QUALITY_FILE, "README.md")
# The one folder of a checkpoint that transformers reads.
_TEMPLATES = "additional_chat_templates"
_PIECE_BYTES = 8 * 2**20

State = Literal["none", "passed", "failed", "stale", "unreadable"]


class Standing(NamedTuple):
    """How a checkpoint stands to its quality.json; `text` is one line for people."""

    state: State
    text: str


def standing(folder: Path) -> Standing:
    """Read the verdict and compare it with the files, all of whose bytes are hashed. Raises nothing for bad content."""
    file = folder / QUALITY_FILE
    if not file.is_file():
        return Standing("none", f"no {QUALITY_FILE}; `burrstone quantize eval REFERENCE {folder}` writes one")
    try:
        quality = json.loads(file.read_text())
        if quality["format_version"] != FORMAT_VERSION:
            return Standing(
                "unreadable", f"{QUALITY_FILE} is of format {quality['format_version']!r}, not {FORMAT_VERSION}"
            )
        if quality[_SELF] != _own_digest(quality):
            return Standing("unreadable", f"{QUALITY_FILE} was changed after it was written; evaluate again")
        verdict, judged = quality["verdict"], quality["weights_digest"]
        ratio, mean_kl = quality["perplexity_ratio"], quality["mean_kl"]
        figures = [f"{float(value):.4f}" if value is not None else "no number" for value in (ratio, mean_kl)]
        margins, text = quality["margins"], quality["text"]
        found = (
            f"perplexity x{figures[0]}, mean KL {figures[1]} against {quality['reference']['name']}; allowed "
            f"x{1 + margins['perplexity']:g} and {margins['mean_kl']:g}, on {text['shape'][0]} rows of {text['name']}"
            f"{', a SMOKE SET' if text['notice'] else ''}"
        )
        date = str(quality["date"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Standing(
            "unreadable", f"{QUALITY_FILE} cannot be read ({type(error).__name__}: {error}); evaluate again"
        )
    if weights_digest(folder) != judged:
        return Standing(
            "stale", f"the verdict of {date} is about other weights, configuration or tokenizer; evaluate again"
        )
    if verdict != "pass":
        return Standing("failed", f"failed on {date}: {'; '.join([found, *map(str, quality.get('reasons', ()))])}")
    return Standing("passed", f"passed on {date}: {found}")


def write_quality(folder: Path, quality: dict[str, Any]) -> None:
    """Write quality.json. `quality`: what an evaluation found, with `weights_digest` of the files that it was found on;
    without, they are hashed now, for a folder that nobody else can have touched. Raises QuantizeError.
    """
    digest = quality["weights_digest"] if "weights_digest" in quality else weights_digest(folder)
    bound = {"format_version": FORMAT_VERSION, **quality, "weights_digest": digest}
    text = json.dumps({**bound, _SELF: _own_digest(bound)}, indent=2, allow_nan=False) + "\n"
    write_text(folder / QUALITY_FILE, text)


def weights_digest(folder: Path) -> str:
    """sha256 over the checkpoint's files, tokenizer and templates included, by name and content; not over what tells of it."""
    own = (file for file in folder.iterdir() if file.name not in _ABOUT and not file.name.startswith("."))
    files = sorted(file for file in (*own, *(folder / _TEMPLATES).rglob("*")) if file.is_file())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_file_digest, files))
    whole = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        whole.update(f"{file.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _own_digest(quality: dict[str, Any]) -> str:
    content = {key: value for key, value in quality.items() if key != _SELF}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
