"""The command line without a server: config, doctor, version, and exit codes with a line that says why."""

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, TypeAdapter, ValidationError

from burrstone.serving.cli import doctor
from burrstone.serving.cli.main import main
from burrstone.serving.cli.serve import cause
from burrstone.serving.config import ServeConfig
from burrstone.serving.config_load import options
from burrstone.serving.hardware import Hardware

GIB = 2**30
MACHINE = Hardware("cpu", (0, 1), 20 * GIB, frozenset({"avx2", "avx512f"}), (), 0, "")
Capture = pytest.CaptureFixture[str]


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"burrstone {importlib.metadata.version('burrstone')}\n"


def test_the_cause_of_a_failed_start_is_what_was_raised() -> None:
    def refuse(value: int) -> int:
        raise ValueError(f"{value} bits are not read here; install what reads them")

    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Annotated[int, AfterValidator(refuse)]).validate_python(4)
    account = f"The deployment failed to start:\nTraceback ...\npydantic_core.ValidationError: {caught.value}\n"
    assert "errors.pydantic.dev" in account.splitlines()[-1]
    assert cause(account) == "4 bits are not read here; install what reads them"
    assert cause("Traceback ...\nRuntimeError: no memory\n\n") == "RuntimeError: no memory"
    assert cause(" \n") == "it took longer than replica.start_timeout_s"


def test_the_installed_command_is_this_one() -> None:
    command = [str(Path(sys.executable).with_name("burrstone")), "config", "validate", "--http.port", "-1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("burrstone: http.port: ")


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["config"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "burrstone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--htttp-port", "1"], "unknown argument --htttp-port; did you mean --http-port?"),
        (["--no-such-flag"], "unknown argument --no-such-flag; see `burrstone "),
        (["serve.yaml"], "serve.yaml stands where the model's name goes"),
        (["--http.port", "9", "--grpc.port", "9"], "configuration: http.port and grpc.port are both 9"),
        (["--http.port", "many"], "http.port: Input should be a valid integer"),
        (["--http.port", "["], "--http.port: '[' is not a YAML value"),
        (["--engine.tensor-parallel-size", "0"], "engine.tensor_parallel_size: "),
        (["-tp", "0"], "engine.tensor_parallel_size: "),
        (["--config", "/no/such.yaml"], "cannot read the configuration file /no/such.yaml: No such file"),
        (["--engine.speculative.method", "eagle"], "engine.speculative: speculative.model is required"),
    ],
)
@pytest.mark.parametrize("command", [["serve"], ["config", "validate"], ["config", "show"]])
def test_a_wrong_configuration_is_2_and_one_line(
    command: list[str], arguments: list[str], message: str, capsys: Capture
) -> None:
    assert main([*command, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"burrstone: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "http.host is '0.0.0.0', which other machines can reach, but no API key is configured"),
        (["no-such-model"], "model 'no-such-model' is neither a folder, nor a hub id"),
        (["--keys-file", "/no/keys"], "auth.keys_file: cannot read /no/keys"),
    ],
)
def test_what_cannot_be_served_is_2_before_anything_starts(
    arguments: list[str], message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BURRSTONE_API_KEYS", raising=False)
    assert main(["serve", *arguments]) == 2
    assert f"burrstone: {message}" in capsys.readouterr().err


def test_a_valid_configuration_is_0(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("http: {port: 1234}")
    assert main(["config", "validate", "-c", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out == "The configuration is valid.\n"


def test_show_prints_every_key_its_value_and_its_origin(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("http: {port: 1234, cors_origins: [a, b]}")
    assert main(["config", "show", "owner/name", "-c", str(file), "--http-port", "99", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == {"value": "owner/name", "origin": "command line"}
    assert shown["http.port"] == {"value": 99, "origin": "command line"}
    assert shown["http.cors_origins"] == {"value": ["a", "b"], "origin": str(file)}
    assert shown["grpc.port"] == {"value": 9000, "origin": "default"}
    off = {option.key for option in options() if option.key.startswith("engine.speculative.")}
    assert shown.keys() == {option.key for option in options()} - off | {"engine.speculative"}
    assert main(["config", "show", "-c", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shown)
    assert lines[list(shown).index("http.port")].split() == ["http.port", "1234", str(file)]


def test_what_show_prints_is_a_configuration(capsys: Capture) -> None:
    """Given back as flags it gives the same."""
    assert main(["config", "show", "--json", "--engine.speculative.method", "ngram"]) == 0
    first = json.loads(capsys.readouterr().out)
    flags = []
    for key, value in ((key, row["value"]) for key, row in first.items() if row["value"] is not None):
        flags += [f"--{key.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
    assert main(["config", "show", "--json", *flags]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {key: row["value"] for key, row in again.items()} == {key: row["value"] for key, row in first.items()}


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine on which everything is there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "g++").write_text("#!/bin/sh\n")
    (tools / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(doctor, "detect", lambda: MACHINE)
    monkeypatch.setattr(doctor, "libiomp5", lambda: Path("libiomp5.so"))
    monkeypatch.setattr(doctor, "tcmalloc", lambda: Path("libtcmalloc.so"))
    monkeypatch.setattr(doctor, "_taken", lambda port: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * GIB))
    monkeypatch.delenv("BURRSTONE_PROFILE", raising=False)
    return monkeypatch


def report(capsys: Capture) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json"])
    loaded: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, loaded


def test_a_healthy_machine(healthy: pytest.MonkeyPatch, capsys: Capture) -> None:
    code, found = report(capsys)
    assert [check for check in found["checks"] if check["result"] != "ok"] == []
    assert (code, found["healthy"], found["hardware"]["profile"]) == (0, True, "cpu")
    assert found["versions"]["burrstone"] == importlib.metadata.version("burrstone")
    assert main(["doctor"]) == 0
    assert "profile cpu, 2 cores, 20.0 GiB free memory" in capsys.readouterr().out


def _pretend(name: str, version: str | None) -> Any:
    """A lookup of installed versions in which one package differs."""
    original = doctor._version
    return lambda asked: version if asked == name else original(asked)


_SICK: dict[str, tuple[str, str, str]] = {
    # case -> (check, result, part of the advice)
    "python": ("Python", "fail", "use Python 3.11"),
    "neuron": ("accelerator", "fail", "set BURRSTONE_PROFILE=cpu"),
    "no gpu": ("accelerator", "fail", "unset BURRSTONE_PROFILE"),
    "wrong version": ("packages", "fail", "make setup"),
    "missing package": ("packages", "fail", "make setup"),
    "torchvision": ("conflicts", "fail", "pip uninstall torchvision"),
    "no model": ("embedded model", "warn", "make setup"),
    "no compiler": ("C++ compiler", "fail", "apt-get install g++"),
    "no openmp": ("OpenMP", "warn", "make setup"),
    "no tcmalloc": ("tcmalloc", "warn", "libtcmalloc-minimal4"),
    "old cpu": ("CPU features", "warn", "AVX-512"),
    "little memory": ("memory", "warn", "4 GiB"),
    "full disk": ("disk", "warn", "cache_dir"),
    "small shm": ("shared memory", "fail", "--shm-size=1g"),
    "ports": ("ports", "warn", "--http-port"),
}


@pytest.mark.parametrize("case", sorted(_SICK))
def test_each_check_fails_where_it_should(case: str, healthy: pytest.MonkeyPatch, capsys: Capture) -> None:
    changes: dict[str, tuple[Any, str, Any]] = {
        "python": (platform, "python_version", lambda: "3.12.1"),
        "neuron": (doctor, "detect", lambda: replace(MACHINE, profile="neuron-inf2", neuron_devices=1)),
        "no gpu": (doctor, "detect", lambda: replace(MACHINE, profile="cuda")),
        "wrong version": (doctor, "_version", _pretend("ray", "1.0")),
        "missing package": (doctor, "_version", _pretend("ray", None)),
        "torchvision": (doctor, "_version", _pretend("torchvision", "0.1")),
        "no model": (importlib.util, "find_spec", lambda _: None),
        "no compiler": (shutil, "which", lambda _: None),
        "no openmp": (doctor, "libiomp5", lambda: None),
        "no tcmalloc": (doctor, "tcmalloc", lambda: None),
        "old cpu": (doctor, "detect", lambda: replace(MACHINE, cpu_flags=frozenset({"avx2"}))),
        "little memory": (doctor, "detect", lambda: replace(MACHINE, memory_bytes=GIB)),
        "full disk": (shutil, "disk_usage", lambda path: SimpleNamespace(free=_free(path, home=1))),
        "small shm": (shutil, "disk_usage", lambda path: SimpleNamespace(free=_free(path, shm=1))),
        "ports": (doctor, "_taken", lambda port: port == 8000),
    }
    healthy.setattr(*changes[case])
    code, found = report(capsys)
    name, result, advice = _SICK[case]
    checks = {check["name"]: check for check in found["checks"]}
    assert checks[name]["result"] == result
    assert advice in checks[name]["advice"] and checks[name]["found"]
    assert (code, found["healthy"]) == ((1, False) if result == "fail" else (0, True))
    assert main(["doctor"]) == code
    assert f"-> {checks[name]['advice']}" in capsys.readouterr().out


def _free(path: Path, home: int = 10 * GIB, shm: int = 10 * GIB) -> int:
    return shm if str(path) == "/dev/shm" else home


def test_a_port_that_is_listened_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert doctor._taken(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("requirement", "found"),
    [
        ("ray[serve]==2.60.0", {"ray": "2.60.0"}),
        ('torch==2.13.0+cpu; extra == "cpu"', {"torch": "2.13.0+cpu"}),
        ("torch==2.13.0; extra == 'cuda'", {}),
        ("torch===2.13.0 ; extra == 'cpu'", {"torch": "2.13.0"}),
        ("numpy>=2", {}),
    ],
)
def test_pins_are_read_from_the_packages_own_metadata(requirement: str, found: dict[str, str]) -> None:
    assert doctor.pins([requirement], {"cpu", "embedded"}) == found


def test_help_shows_the_defaults(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"TCP port. [{ServeConfig().http.port}]" in shown
