"""A user's own task: questions with choices, or prompts with the completion that is right."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burrstone.quant.errors import BadData
from burrstone.quant.texts import chat_ids, jsonl_rows, text_ids


@dataclass(frozen=True, slots=True)
class Case:
    """options: token rows [length], prompt and answer. answers: how many tokens at the end of each are the answer.

    With one option, it is right when every token of the answer is the model's first choice; with more, when `right` has
    the highest mean log probability a token.
    """

    options: tuple[Tensor, ...]
    answers: tuple[int, ...]
    right: int

    def correct(self, logits: list[Tensor]) -> bool:
        """logits: for each option [length, vocabulary]."""
        scores = []
        for option, length, row in zip(self.options, self.answers, logits, strict=True):
            told, answer = row[-length - 1 : -1], option[-length:].to(row.device)
            if len(self.options) == 1:
                return bool((told.argmax(dim=-1) == answer).all())
            scores.append(float(told.log_softmax(dim=-1).gather(1, answer[:, None]).mean()))
        return max(range(len(scores)), key=scores.__getitem__) == self.right


def load_cases(file: Path, tokenizer: Any) -> list[Case]:
    """Rows {"prompt" | "messages", "choices": [...], "answer": index} or {"prompt" | "messages", "completion"}.

    Raises BadData that names the line.
    """
    cases = [_case(row, where, tokenizer) for where, row in jsonl_rows(file)]
    if not cases:
        raise BadData(f"{file} holds no case")
    return cases


def cases_digest(cases: list[Case]) -> str:
    """sha256 of all that decides how they come out."""
    whole = [[[option.tolist() for option in case.options], case.answers, case.right] for case in cases]
    return f"sha256:{hashlib.sha256(json.dumps(whole).encode()).hexdigest()}"


def _case(row: dict[str, Any], where: str, tokenizer: Any) -> Case:
    choices, right = row.get("choices"), row.get("answer")
    if choices is None:
        choices, right = [row.get("completion")], 0
    elif not isinstance(choices, list) or len(choices) < 2:
        raise BadData(f"{where}: `choices` is a list of two or more strings")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise BadData(f"{where} needs `completion`, or `choices` with `answer`, as strings that are not empty")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise BadData(
            f"{where}: `answer` is the number of the right choice, from 0 to {len(choices) - 1}; the line has {_keys(row)}"
        )
    prompt = _prompt_ids(row, where, tokenizer)
    answers = [text_ids(choice, where, tokenizer, add_special_tokens=False) for choice in choices]
    if not prompt or not all(answers):
        raise BadData(f"{where}: the prompt and each answer need at least one token")
    options = tuple(torch.tensor([*prompt, *answer], dtype=torch.int64) for answer in answers)
    return Case(options, tuple(len(answer) for answer in answers), right)


def _prompt_ids(row: dict[str, Any], where: str, tokenizer: Any) -> list[int]:
    if "messages" in row:
        return chat_ids(row, where, tokenizer, add_generation_prompt=True)
    if not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise BadData(f"{where} has neither `prompt` nor `messages`, but {_keys(row)}")
    return text_ids(row["prompt"], where, tokenizer)


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(f"`{key}`" for key in row) or "nothing"
