"""The folders keep their names, the imports are burrstone's, and what is in the tree is in the wheel."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
ROOMS = ("serving", "batching", "bench", "kernels", "quant")
# Run by path while developing; the stubs it writes below itself are the package burrstone.openai.
NOT_PACKAGES = {"serving/proto", "bench/results"}


def code_folders(root: Path) -> Iterator[Path]:
    """Every folder of the rooms that holds a file of its own, relative to `root`."""
    for room in sorted(set(FOLDERS.values())):
        for folder in [root / room, *(path for path in (root / room).rglob("*") if path.is_dir())]:
            if "__pycache__" not in folder.parts and any(path.is_file() for path in folder.iterdir()):
                yield folder.relative_to(root)


def package_of(folder: Path) -> str:
    """The import name of a folder: that of the nearest mapped folder above it, and the path from there."""
    for above in (folder, *folder.parents):
        for name, mapped in FOLDERS.items():
            if str(above) == mapped:
                return ".".join([name, *folder.relative_to(above).parts])
    raise AssertionError(f"{folder} is below no mapped folder")


def shipped_files() -> set[str]:
    """What the wheel must hold, as paths in it."""
    found = set()
    for folder in code_folders(ROOT):
        if str(folder) in NOT_PACKAGES:
            continue
        inside = PurePosixPath(*package_of(folder).split("."))
        found |= {str(inside / path.name) for path in (ROOT / folder).iterdir() if path.is_file()}
    return found


def test_packages_are_the_folders_that_hold_code_or_data() -> None:
    folders = {package_of(folder) for folder in code_folders(ROOT) if str(folder) not in NOT_PACKAGES}
    assert set(SETUPTOOLS["packages"]) == folders
    assert set(ROOMS) < set(FOLDERS.values())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_no_package_of_its_own(room: str) -> None:
    """A root `kernels/__init__.py` would be what transformers finds when it imports Hugging Face's `kernels`."""
    assert not (ROOT / room / "__init__.py").exists()
    assert (ROOT / room / "py.typed").exists()


def test_folders_inside_a_room_are_packages() -> None:
    """Without `__init__.py`, package data is found in a wheel and not in an editable install."""
    inside = {folder for folder in code_folders(ROOT) if str(folder) not in {*FOLDERS.values(), *NOT_PACKAGES}}
    assert {folder for folder in inside if not (ROOT / folder / "__init__.py").exists()} == set()


@pytest.mark.parametrize("room", ROOMS)
def test_the_bare_name_is_refused_by_the_linter_and_linked_for_the_type_checker(room: str) -> None:
    assert room in PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert (ROOT / ".links" / "burrstone" / room).resolve() == ROOT / room


def test_nothing_of_ours_was_imported_under_a_bare_name() -> None:
    """`serving.config` beside `burrstone.serving.config` would be two classes of one name."""
    bare = {name for name in sys.modules if name.split(".")[0] in ROOMS}
    assert {name for name in bare if str(ROOT) in (getattr(sys.modules[name], "__file__", None) or "")} == set()


def test_bare_names_are_not_importable_once_installed(tmp_path: Path) -> None:
    found = _specs(tmp_path, [])
    assert {name for name, path in found.items() if path is not None and str(ROOT) in path} == set()


def test_our_folders_shadow_nobody(tmp_path: Path) -> None:
    """With the checkout first on the path, as `python -m` and locust put it, another `kernels` still wins."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    found = _specs(tmp_path, [str(ROOT), str(tmp_path)])
    assert found == {room: str(tmp_path / room / "__init__.py") for room in ROOMS}


def _specs(cwd: Path, first: list[str]) -> dict[str, str | None]:
    """Where a fresh interpreter would import each bare name from, with `first` at the front of its path."""
    program = (
        "import importlib.util, json, sys\n"
        "first, names = json.loads(sys.argv[1])\n"
        "sys.path[:0] = first\n"
        "specs = {name: importlib.util.find_spec(name) for name in names}\n"
        "where = {n: s and (s.origin or list(s.submodule_search_locations)[0]) for n, s in specs.items()}\n"
        "print(json.dumps(where))"
    )
    command = [sys.executable, "-P", "-c", program, json.dumps([first, ROOMS])]
    done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built from a copy: a build leaves files beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*build, "-w", str(folder), str(copy)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_file_of_the_rooms(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = shipped_files()
    assert {PurePosixPath(name).suffix for name in expected} >= {".py", ".pyi", ".proto", ".jinja", ".typed"}
    assert held == expected


def test_the_wheel_says_what_pyproject_says(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert f"\nVersion: {PROJECT['project']['version']}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    (entries,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert declared_entry_points() == _parsed(wheel.read(entries).decode())


def declared_entry_points() -> set[tuple[str, str, str]]:
    """(group, name, object) of everything pyproject.toml offers to others."""
    groups = {"console_scripts": PROJECT["project"]["scripts"], **PROJECT["project"]["entry-points"]}
    return {(group, name, value) for group, entries in groups.items() for name, value in entries.items()}


def _parsed(text: str) -> set[tuple[str, str, str]]:
    found, group = set(), ""
    for line in filter(None, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[]")
        else:
            name, _, value = line.partition("=")
            found.add((group, name.strip(), value.strip()))
    return found


@pytest.mark.parametrize(("group", "name", "value"), sorted(declared_entry_points()))
def test_entry_points_import(group: str, name: str, value: str) -> None:
    assert callable(importlib.metadata.EntryPoint(name, value, group).load())


def test_the_environment_has_this_trees_entry_points() -> None:
    """Installed from another state of pyproject.toml, vLLM would not find our plugin."""
    installed = importlib.metadata.distribution("burrstone").entry_points
    assert {(entry.group, entry.name, entry.value) for entry in installed} == declared_entry_points(), (
        "run `make setup`"
    )
