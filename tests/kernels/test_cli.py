"""`burrstone kernels`, as a user calls it."""

import json
from pathlib import Path

import pytest

from burrstone.kernels.cli import main as alone
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
    assert [name for name in KERNELS if f"## `{name}`" not in text or f"| `{name}` |" not in text] == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["check", "--processes", "0"], "at least 1"),
        (["tune", "--candidates", "-1"], "at least 1"),
        (["bench", "--budget-s", "0"], "seconds, more than 0"),
        (["bench", "--budget-s", "nan"], "seconds, more than 0"),
    ],
)
def test_numbers_that_are_none_are_refused(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        alone(flags)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_a_python_without_pytorch_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert alone(["list"]) == 2
    assert "has no torch; call a Python that has PyTorch and Triton" in capsys.readouterr().err
