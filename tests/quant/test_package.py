"""`from burrstone.quant import ...`: what a program sees, and that it costs nothing until it is used."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from quant_runs import write_text
from tiny_models import tiny_model

import burrstone.quant
from burrstone.quant import (
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

NAMES = sorted(name for names in burrstone.quant._HOMES.values() for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there_and_explained(name: str) -> None:
    found = getattr(burrstone.quant, name)
    assert name in dir(burrstone.quant)
    # A dataclass without a docstring gets its signature for one.
    assert name in ("SilentBar", "TerminalBar") or not (inspect.getdoc(found) or f"{name}(").startswith(f"{name}(")


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match=r"'burrstone\.quant' has no attribute 'nothing'"):
        _ = burrstone.quant.nothing


def test_importing_it_loads_no_torch() -> None:
    program = "import sys, burrstone.quant; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


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
