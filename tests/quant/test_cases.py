"""A user's own cases: how they are tokenized and judged, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import byte_tokenizer
from tokenizers import normalizers

from burrstone.quant.cases import Case, load_cases
from burrstone.quant.errors import BadData

CHAT = [{"role": "user", "content": "2+2"}]
VOCABULARY = 257


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def load(folder: Path, tokenizer: Any, *rows: object) -> list[Case]:
    file = folder / "cases.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return load_cases(file, tokenizer)


def texts(case: Case, tokenizer: Any) -> list[tuple[str, str]]:
    """Prompt and answer of each option."""
    return [
        (tokenizer.decode(option[:-length]), tokenizer.decode(option[-length:]))
        for option, length in zip(case.options, case.answers, strict=True)
    ]


def test_each_kind_of_case(tokenizer: Any, tmp_path: Path) -> None:
    cases = load(
        tmp_path,
        tokenizer,
        {"prompt": "2+2=", "completion": "four"},
        "",
        {"prompt": "2+2=", "choices": ["4", "five"], "answer": 0},
        {"messages": CHAT, "completion": "4"},
        {"messages": CHAT, "choices": ["3", "4", "5"], "answer": 1},
    )
    assert [case.right for case in cases] == [0, 0, 0, 1]
    asked = "<user>2+2<assistant>"
    assert [texts(case, tokenizer) for case in cases] == [
        [("2+2=", "four")],
        [("2+2=", "4"), ("2+2=", "five")],
        [(asked, "4")],
        [(asked, "3"), (asked, "4"), (asked, "5")],
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is no JSON object"),
        ({"prompt": "x"}, "needs `completion`, or `choices` with `answer`, as strings that are not empty"),
        ({"prompt": "x", "completion": ""}, "needs `completion`"),
        ({"prompt": "x", "completion": 4}, "needs `completion`"),
        ({"prompt": "x", "choices": ["a", ""], "answer": 0}, "as strings that are not empty"),
        ({"prompt": "x", "choices": ["a", 5], "answer": 0}, "as strings that are not empty"),
        ({"prompt": "x", "choices": ["a"], "answer": 0}, "`choices` is a list of two or more strings"),
        ({"prompt": "x", "choices": "ab", "answer": 0}, "`choices` is a list of two or more strings"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, "number of the right choice, from 0 to 1"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": -1}, "from 0 to 1"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": "a"}, "from 0 to 1"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": True}, "from 0 to 1"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": None}, "from 0 to 1"),
        ({"completion": "x"}, "has neither `prompt` nor `messages`"),
        ({"prompt": "", "completion": "x"}, "has neither `prompt` nor `messages`"),
        ({"prompt": ["x"], "completion": "x"}, "has neither `prompt` nor `messages`"),
        ({"messages": [], "completion": "x"}, "the model's chat template refuses `messages`"),
    ],
)
def test_a_bad_case_is_named_by_file_and_line(row: object, message: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadData) as caught:
        load(tmp_path, tokenizer, {"prompt": "x", "completion": "y"}, row)
    assert str(caught.value).startswith(f"{tmp_path / 'cases.jsonl'}:2")
    assert message in str(caught.value)


def test_choices_need_an_answer(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="answer"):
        load(tmp_path, tokenizer, {"prompt": "x", "choices": ["a", "b"]})


def test_no_cases_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"cases\.jsonl holds no case$"):
        load(tmp_path, tokenizer, "", "  ")
    with pytest.raises(BadData, match=r"absent\.jsonl does not exist"):
        load_cases(tmp_path / "absent.jsonl", tokenizer)


def case_of(answers: list[str], right: int, tokenizer: Any) -> Case:
    encoded = [tokenizer(f"Q:{answer}")["input_ids"] for answer in answers]
    options = tuple(torch.tensor(tokens, dtype=torch.int64) for tokens in encoded)
    return Case(options, tuple(len(answer) for answer in answers), right)


def telling(option: torch.Tensor, sure: float = 9.0) -> torch.Tensor:
    """Logits [length, vocabulary] of a model whose first choice is always the option's next token."""
    logits = torch.zeros(len(option), VOCABULARY)
    logits[torch.arange(len(option) - 1), option[1:]] = sure
    return logits


def test_a_completion_is_right_when_every_token_is_the_first_choice(tokenizer: Any) -> None:
    case = case_of(["yes"], 0, tokenizer)
    (option,) = case.options
    logits = telling(option)
    assert case.correct([logits])
    for position in range(len(option)):
        other = logits.clone()
        other[position, 5] = 20.0
        # Q: is the prompt, so the answer's tokens are told at positions 1, 2 and 3; what comes after it is not asked.
        assert case.correct([other]) == (position not in (1, 2, 3))


@given(
    st.integers(0, 2),
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=3, max_size=3, unique=True),
    st.integers(0, 2**31),
)
def test_choices_are_ranked_by_mean_log_probability(right: int, answers: list[str], seed: int) -> None:
    case = case_of(answers, right, byte_tokenizer())
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(len(option), VOCABULARY, generator=generator) * 3 for option in case.options]
    means = []
    for option, length, row in zip(case.options, case.answers, logits, strict=True):
        start = len(option) - length
        probabilities = [row[i - 1].double().softmax(dim=0)[option[i]] for i in range(start, len(option))]
        means.append(sum(float(probability.log()) for probability in probabilities) / length)
    assert case.correct(logits) == (max(range(3), key=means.__getitem__) == right)


def test_a_longer_answer_is_not_worse_for_its_length(tokenizer: Any) -> None:
    case = case_of(["a", "bbbbbbbb"], 1, tokenizer)
    assert case.correct([telling(case.options[0], sure=3.0), telling(case.options[1], sure=4.0)])
    assert not case.correct([telling(case.options[0], sure=5.0), telling(case.options[1], sure=4.0)])


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": "\\ud800", "completion": "a"}',
        '{"prompt": "a", "completion": "\\ud800"}',
        '{"messages": [{"role": "user", "content": "\\ud800"}], "completion": "a"}',
    ],
)
def test_what_is_no_text_is_refused_by_its_line(row: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"cases\.jsonl:2 is no valid text"):
        load(tmp_path, tokenizer, {"prompt": "a", "completion": "b"}, row)


def test_an_answer_of_no_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("b", "")
    with pytest.raises(BadData, match=r"cases\.jsonl:1: the prompt and each answer need at least one token"):
        load(tmp_path, tokenizer, {"prompt": "a", "choices": ["c", "b"], "answer": 0})
