"""Shared fixtures: one real engine and one scripted engine for the whole session, each behind the real command."""

from collections.abc import Iterator

import pytest

from harness import EXACT_FLAGS, SCRIPT, SMALL_FLAGS, Server, serving


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real engine with the embedded model."""
    folder = tmp_path_factory.mktemp("engine")
    with serving(folder / "log", *SMALL_FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def exact_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real engine in float32, for comparing answers: in bfloat16 a step's batch decides how its sums are rounded."""
    folder = tmp_path_factory.mktemp("exact-engine")
    with serving(folder / "log", *EXACT_FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The scripted engine behind the same edges."""
    folder = tmp_path_factory.mktemp("scripted")
    flags = ["--engine.kind", "scripted", "--engine.script", str(SCRIPT), "--replica.drain-grace-s", "5"]
    with serving(folder / "log", *flags) as server:
        yield server
