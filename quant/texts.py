"""Text to calibrate on and to evaluate on: the user's own files, or the built-in smoke set.

The smoke set is Python's own reference text. It is there so that the machinery can be tried without data; figures on it
say nothing about any other use, and everything that is written with it says so.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from burrstone.quant.errors import BadCheckpoint, BadData

SMOKE = "smoke"
SMOKE_NOTICE = (
    "SMOKE SET: Python's reference text, not your data. It shows that the machinery runs; it does not show how good "
    "the checkpoint is for your use. Give your own text or chat logs."
)
Split = Literal["calibration", "held-out"]
_TEXT_SUFFIXES = (".txt", ".md")
_HELD_OUT_EACH = 4


@dataclass(frozen=True, slots=True)
class Tokens:
    """rows: [rows, length] int64, packed without padding. digest: sha256 of them. name: where they are from.

    whole: every row that there is was taken, so that the source has none left for the other split.
    """

    rows: Tensor
    name: str
    digest: str
    whole: bool = False

    @property
    def smoke(self) -> bool:
        return self.name == SMOKE

    def facts(self) -> dict[str, Any]:
        """What tells them from others, as JSON values."""
        return {"name": self.name, "digest": self.digest, "shape": list(self.rows.shape)}

    def row_digests(self) -> list[str]:
        """One of each row, by which it is known again."""
        return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in self.rows]


def load_tokens(source: str, tokenizer: Any, *, rows: int, length: int, split: Split, seed: int = 0) -> Tokens:
    """Up to `rows` rows of `length` tokens from a file, a folder of files, or "smoke". Raises BadData.

    Documents are joined by the tokenizer's end token and cut; which rows are taken is drawn from `seed`, those for
    calibration from one end of a shuffled order and those held out from the other.
    """
    documents = list(_smoke(split, tokenizer) if source == SMOKE else _documents(Path(source), tokenizer))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    flat = [token for ids in documents for token in (*ids, *end)]
    available = len(flat) // length
    if available == 0:
        raise BadData(f"{source}: {len(flat)} tokens are less than one row of {length}; give more text or shorter rows")
    whole = torch.tensor(flat[: available * length], dtype=torch.int64).reshape(available, length)
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    taken = order[:rows] if split == "calibration" else order[max(0, available - rows) :]
    chosen = whole[taken.sort().values].contiguous()
    digest = hashlib.sha256(chosen.numpy().tobytes()).hexdigest()
    return Tokens(chosen, source, f"sha256:{digest}", whole=rows >= available)


def refuse_calibrated(text: Tokens, calibration: dict[str, Any]) -> None:
    """Raises BadData where a row to judge on was calibrated on. calibration: as in quantization.json."""
    if not text.smoke and calibration.get("name") == text.name and calibration["shape"][1] != text.rows.shape[1]:
        raise BadData(
            f"{text.name} was calibrated on, in rows of {calibration['shape'][1]} tokens; give --row-tokens "
            f"{calibration['shape'][1]}, so that other rows of it can be told, or other text"
        )
    if seen := set(calibration.get("rows", ())) & set(text.row_digests()):
        raise BadData(
            f"{text.name}: {len(seen)} of its {len(text.rows)} rows were calibrated on, which proves nothing; give other "
            "text, or quantize again with fewer --rows, which leaves some of this one"
        )


def load_tokenizer(folder: Path) -> Any:
    """A checkpoint's own. Raises BadCheckpoint."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadCheckpoint(f"{folder} has no tokenizer that can be read: {reason}") from error


def _smoke(split: Split, tokenizer: Any) -> Iterator[list[int]]:
    from pydoc_data.topics import topics

    for number, name in enumerate(sorted(topics)):
        if (number % _HELD_OUT_EACH == 0) == (split == "held-out"):
            yield tokenizer(topics[name])["input_ids"]


def _documents(path: Path, tokenizer: Any) -> Iterator[list[int]]:
    if not path.exists():
        raise BadData(f"{path} does not exist; give a .jsonl, .txt or .md file, a folder of them, or {SMOKE!r}")
    files = (
        sorted(file for file in path.rglob("*") if file.suffix in (*_TEXT_SUFFIXES, ".jsonl"))
        if path.is_dir()
        else [path]
    )
    if not files:
        raise BadData(f"{path} holds no .jsonl, .txt or .md file")
    for file in files:
        if file.suffix == ".jsonl":
            yield from (row_ids(row, where, tokenizer) for where, row in jsonl_rows(file))
        elif file.suffix in _TEXT_SUFFIXES:
            yield text_ids(_read(file), str(file), tokenizer)
        else:
            raise BadData(f"{file} is none of .jsonl, .txt, .md, which are what is read")


def jsonl_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line that is not empty. Raises BadData."""
    # Not splitlines: JSON strings may hold other characters that end a line for Python.
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadData(f"{file}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadData(f"{file}:{number} is no JSON object")
        yield f"{file}:{number}", row


def row_ids(row: dict[str, Any], where: str, tokenizer: Any) -> list[int]:
    """Token ids of {"text"}, {"messages"[, "tools"]} or {"prompt", "completion"}. Raises BadData for anything else."""
    if "messages" in row:
        return chat_ids(row, where, tokenizer, add_generation_prompt=False)
    parts = [row.get("text")] if "text" in row else [row.get("prompt"), row.get("completion")]
    if not all(isinstance(part, str) for part in parts):
        raise BadData(f"{where} has none of `text`, `messages`, or `prompt` with `completion`, as strings")
    return text_ids("".join(str(part) for part in parts), where, tokenizer)


def chat_ids(row: dict[str, Any], where: str, tokenizer: Any, *, add_generation_prompt: bool) -> list[int]:
    """Token ids of a row's `messages` by the model's own chat template. Raises BadData."""
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadData(f"{where}: `messages` is a list of objects with `role` and `content`")
    if tokenizer.chat_template is None:
        raise BadData(f"{where} has `messages`, but the model has no chat template; give `text` rows")
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=row.get("tools"), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # templates raise what they like
        raise BadData(f"{where}: the model's chat template refuses `messages`: {error}") from error
    return text_ids(text, where, tokenizer, add_special_tokens=False)


def text_ids(text: str, where: str, tokenizer: Any, **options: Any) -> list[int]:
    """Raises BadData, which names `where`."""
    try:
        ids: list[int] = tokenizer(text, **options)["input_ids"]
    except (TypeError, UnicodeError) as error:
        raise BadData(f"{where} is no valid text: {error}") from error
    return ids


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadData(f"{file} does not exist") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{file} cannot be read as UTF-8 text: {error}; convert it (`iconv -t UTF-8`)") from error
    except OSError as error:
        raise BadData(f"{file} cannot be read: {error.strerror or error}") from error
