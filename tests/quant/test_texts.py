"""Calibration and evaluation text: every kind of file, and each way in which one can be wrong, by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer

from burrstone.quant.errors import BadData
from burrstone.quant.texts import SMOKE, Split, Tokens, load_tokens

END = 256
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


SPLITS: tuple[Split, ...] = ("calibration", "held-out")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def load(path: Path, tokenizer: Any, rows: int = 1000, length: int = 2) -> Tokens:
    return load_tokens(str(path), tokenizer, rows=rows, length=length, split="calibration")


def flat(path: Path, tokenizer: Any) -> list[int]:
    """All the tokens of a source, in rows of one."""
    return [int(token) for token in load(path, tokenizer, length=1).rows.flatten()]


def ids(tokenizer: Any, *documents: str) -> list[int]:
    return [token for text in documents for token in (*tokenizer(text)["input_ids"], END)]


def lines(file: Path, *rows: object) -> Path:
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_text_is_one_document(suffix: str, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / f"text{suffix}"
    file.write_text("Größe 三\n\nmore\n", encoding="utf-8")
    assert flat(file, tokenizer) == ids(tokenizer, "Größe 三\n\nmore\n")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "plain"}, "plain"),
        ({"text": "plain", "prompt": "not this", "source": 7}, "plain"),
        ({"prompt": "2+2=", "completion": "4"}, "2+2=4"),
        ({"messages": CHAT}, "<user>hi<assistant>yo"),
        ({"messages": CHAT, "tools": [{"type": "function"}]}, "<user>hi<assistant>yo"),
        ({"messages": CHAT, "text": "not this"}, "<user>hi<assistant>yo"),
    ],
)
def test_a_jsonl_row_of_each_kind(row: dict[str, Any], text: str, tokenizer: Any, tmp_path: Path) -> None:
    file = lines(tmp_path / "rows.jsonl", "", row, "   ", {"text": "next"})
    assert flat(file, tokenizer) == ids(tokenizer, text, "next")


def test_tools_reach_the_template(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ tools[0].name }}:{{ messages[0].content }}"
    file = lines(tmp_path / "rows.jsonl", {"messages": CHAT, "tools": [{"name": "weather"}]})
    assert flat(file, tokenizer) == ids(tokenizer, "weather:hi")


def test_a_folder_is_its_files_in_the_order_of_their_names(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "sub" / "c.md").write_text("c")
    lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "aa"})
    (tmp_path / "picture.png").write_bytes(b"\xff\xd8")
    assert flat(tmp_path, tokenizer) == ids(tokenizer, "a", "aa", "b", "c")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "cut off', "is not JSON: Unterminated string"),
        ("plain words", "is not JSON: Expecting value"),
        ("[1]", "is no JSON object"),
        ('"text"', "is no JSON object"),
        ({}, "has none of `text`, `messages`, or `prompt` with `completion`"),
        ({"text": 5}, "has none of"),
        ({"text": None, "prompt": "x"}, "has none of"),
        ({"content": "x"}, "has none of"),
        ({"messages": None}, "`messages` is a list of objects"),
        ({"messages": []}, "the model's chat template refuses `messages`"),
        ({"messages": CHAT, "tools": 5}, "the model's chat template refuses `messages`"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(row: object, message: str, tokenizer: Any, tmp_path: Path) -> None:
    file = lines(tmp_path / "rows.jsonl", {"text": "good"}, "", row, {"text": "good"})
    with pytest.raises(BadData) as caught:
        load(tmp_path, tokenizer)
    assert str(caught.value).startswith(f"{file}:3")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": 5, "completion": "x"},
        {"prompt": "x", "completion": None},
        {"prompt": ["x"], "completion": {"y": 1}},
        {"prompt": "x"},
        {"messages": "hello"},
        {"messages": {"role": "user", "content": "x"}},
        {"messages": ["hello"]},
        {"messages": [CHAT, CHAT]},
        {"text": "\ud800"},
    ],
    ids=json.dumps,
)
def test_a_row_of_wrong_types_is_refused(row: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"rows\.jsonl:1"):
        load(lines(tmp_path / "rows.jsonl", row), tokenizer)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_only_a_newline_ends_a_line(mark: str, tokenizer: Any, tmp_path: Path) -> None:
    file = lines(tmp_path / "rows.jsonl", json.dumps({"text": f"a{mark}b"}, ensure_ascii=False))
    assert flat(file, tokenizer) == ids(tokenizer, f"a{mark}b")


@pytest.mark.parametrize("name", ["bad.txt", "bad.md", "bad.jsonl"])
def test_what_is_not_utf8_is_named(name: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("Größe".encode("latin-1"))
    with pytest.raises(BadData, match=rf"^{tmp_path / name} cannot be read as UTF-8 text: 'utf-8' codec"):
        load(tmp_path, tokenizer)


def test_a_template_s_own_objection_is_told(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadData, match=r"rows\.jsonl:1: the model's chat template refuses.*roles must alternate"):
        load(lines(tmp_path / "rows.jsonl", {"messages": CHAT}), tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(BadData, match=r"rows\.jsonl:1 has `messages`, but the model has no chat template; give `text`"):
        load(lines(tmp_path / "rows.jsonl", {"messages": CHAT}), tokenizer)


def test_what_is_no_text_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none", r"none does not exist; give a \.jsonl, \.txt or \.md file, a folder of them, or 'smoke'"),
        (tmp_path / "table.csv", r"table\.csv is none of \.jsonl, \.txt, \.md"),
        (tmp_path / "empty", r"empty holds no \.jsonl, \.txt or \.md file"),
    ):
        with pytest.raises(BadData, match=message):
            load(path, tokenizer)


def test_too_little_text_is_told_with_its_length(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("four")
    assert load(tmp_path, tokenizer, length=5).rows.tolist() == [ids(tokenizer, "four")]
    with pytest.raises(BadData, match=r": 5 tokens are less than one row of 6; give more text or shorter rows$"):
        load(tmp_path, tokenizer, length=6)
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(BadData, match=r": 1 tokens are less"):
        load(tmp_path, tokenizer)


def test_rows_are_drawn_from_the_whole_alike_each_time(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("".join(chr(97 + n % 26) + str(n) for n in range(2000)))
    everything = [tuple(row) for row in load(tmp_path, tokenizer, length=10).rows.tolist()]
    some = load(tmp_path, tokenizer, rows=20, length=10)
    drawn = [everything.index(tuple(row)) for row in some.rows.tolist()]
    assert drawn == sorted(set(drawn)) and len(drawn) == 20
    assert drawn[-1] > len(everything) // 2
    again = load(tmp_path, tokenizer, rows=20, length=10)
    assert (again.digest, again.name, again.smoke) == (some.digest, str(tmp_path), False)
    other = load_tokens(str(tmp_path), tokenizer, rows=20, length=10, split="calibration", seed=1)
    assert other.digest != some.digest
    assert other.rows.shape == (20, 10)


@pytest.mark.parametrize(("rows", "shared"), [(10, 0), (100, 0), (103, 1), (500, 205)])
def test_calibration_and_held_out_rows_of_one_text_are_apart_while_there_are_enough(
    rows: int, shared: int, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("".join(f"{n:05}" for n in range(410)))  # 205 rows, and an end token
    parts = [load_tokens(str(tmp_path), tokenizer, rows=rows, length=10, split=split).row_digests() for split in SPLITS]
    assert all(len(set(part)) == min(rows, 205) for part in parts)
    assert len(set(parts[0]) & set(parts[1])) == shared


def test_a_tokenizer_without_an_end_token_joins_documents_bare(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    file = lines(tmp_path / "rows.jsonl", {"text": "ab"}, {"text": "cd"})
    assert flat(file, tokenizer) == tokenizer("abcd")["input_ids"]


def test_the_smoke_set_s_two_parts_share_next_to_nothing(tokenizer: Any) -> None:
    parts: dict[Split, set[tuple[int, ...]]] = {"calibration": set(), "held-out": set()}
    for split, rows in parts.items():
        tokens = load_tokens(SMOKE, tokenizer, rows=100_000, length=32, split=split)
        assert tokens.smoke
        rows.update(tuple(row) for row in tokens.rows.tolist())
    assert len(parts["calibration"]) > len(parts["held-out"]) > 1000
    # The reference repeats a few of its paragraphs under another heading.
    assert len(parts["calibration"] & parts["held-out"]) < 0.02 * len(parts["held-out"])
