"""`burrstone kernels`, as a user calls it."""

import json
from pathlib import Path

import pytest

from burrstone.kernels.registry import KERNELS
from burrstone.serving.cli.main import main


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(KERNELS)
    assert main(["kernels", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == set(KERNELS) and all(text.startswith("K") for text in told.values())


def test_every_kernel_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/kernels.md").read_text()
    assert all(f"## `{name}`" in text and f"| `{name}` |" in text for name in KERNELS)
