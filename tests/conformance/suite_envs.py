"""One environment for each suite, made once in the cache: a venv with its pins, or a folder of npm packages."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "burrstone" / "conformance"
DRIVERS = Path(__file__).parent / "drivers"
_INSTALL_TIMEOUT_S = 900


class SuiteUnavailable(Exception):
    """The suite cannot be installed here; the text says why."""


@dataclass(frozen=True)
class SuiteEnv:
    """A suite's own environment. `folder` is where its programs run and leave their reports."""

    folder: Path

    def program(self, name: str) -> str:
        return str(self.folder / "venv" / "bin" / name)

    def run(self, command: list[str], *, timeout_s: float, environ: dict[str, str] | None = None) -> str:
        """The command's standard output, whatever its exit status. Raises RuntimeError when it says nothing at all."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=clean_environ() | (environ or {}),
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.stdout.strip():
            raise RuntimeError(f"{Path(command[0]).name} exited with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


def prepared(name: str, pins: dict[str, Any], say: Callable[[str], None]) -> SuiteEnv:
    """The environment with these pins, installed when it is not there yet. Raises SuiteUnavailable."""
    folder = CACHE / name
    stamp = folder / "stamp"
    wanted = hashlib.sha256(repr((sorted(pins.items()), sys.version)).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return SuiteEnv(folder)
    say("installing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if "python" in pins:
        _install([sys.executable, "-m", "venv", str(folder / "venv")])
        _install([str(folder / "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check", *pins["python"]])
    if "sdist" in pins:
        _unpack_sdist(folder, pins["sdist"])
    if "npm" in pins:
        if shutil.which("npm") is None:
            raise SuiteUnavailable("node and npm are not installed")
        _install(["npm", "install", "--prefix", str(folder), "--no-fund", "--no-audit", "--silent", *pins["npm"]])
    stamp.write_text(wanted)
    return SuiteEnv(folder)


def clean_environ() -> dict[str, str]:
    """This process's environment without what belongs to our own Python."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}


def _unpack_sdist(folder: Path, pin: str) -> None:
    pip = str(folder / "venv/bin/pip")
    _install([pip, "download", "--quiet", "--no-deps", "--no-binary", ":all:", pin, "-d", str(folder)])
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "sdist", filter="data")


def _install(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, env=clean_environ(), timeout=_INSTALL_TIMEOUT_S, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise SuiteUnavailable(f"{Path(command[0]).name} took longer than {_INSTALL_TIMEOUT_S} s") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "ERR!" in line]
        raise SuiteUnavailable(f"{Path(command[0]).name} failed: {(errors or ['no message'])[0][:300]}")
