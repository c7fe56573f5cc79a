"""`from burrstone.quant.api import ...`: what a program sees."""

import inspect
from pathlib import Path

import pytest
from quant_runs import write_text
from tiny_models import tiny_model

from burrstone.quant import api
from burrstone.quant.api import (
    Checkpoint,
    Data,
    Job,
    Margins,
    Recipe,
    SilentBar,
    evaluate_checkpoint,
    find_checkpoint,
    load_tokenizer,
    load_tokens,
    record_quality,
    standing,
)


@pytest.mark.parametrize("name", api.__all__)
def test_each_name_is_there_and_explained(name: str) -> None:
    # A dataclass without a docstring gets its signature for one.
    assert not (inspect.getdoc(getattr(api, name)) or f"{name}(").startswith(f"{name}(")


def test_the_docstring_s_program(tmp_path: Path) -> None:
    source = Checkpoint(find_checkpoint(str(tiny_model(tmp_path / "tiny"))))
    tokenizer = load_tokenizer(source.folder)
    chats = str(write_text(tmp_path / "chats.txt", seed=1))
    tokens = load_tokens(chats, tokenizer, rows=4, length=32, split="calibration")
    Job(source, tmp_path / "int8", Recipe(), tokens, SilentBar()).run()
    text = load_tokens(chats, tokenizer, rows=8, length=32, split="held-out")
    margins = Margins(perplexity=9.0, mean_kl=9.0)
    quality = evaluate_checkpoint(source, Checkpoint(tmp_path / "int8"), Data(text), margins=margins)
    assert standing(tmp_path / "int8").state == "none"
    record_quality(tmp_path / "int8", quality)
    assert standing(tmp_path / "int8").state == "passed"
