"""Shared fixtures: one real engine and one scripted engine for the whole session, each behind the real command."""

from collections.abc import Iterator

import pytest

from harness import SCRIPT, Server, serving


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real engine with the embedded model."""
    folder = tmp_path_factory.mktemp("engine")
    with serving(folder / "log", "--limits.default-max-tokens", "64", "--engine.max-model-len", "2048") as server:
        yield server


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The scripted engine behind the same edges."""
    folder = tmp_path_factory.mktemp("scripted")
    flags = ["--engine.kind", "scripted", "--engine.script", str(SCRIPT), "--replica.drain-grace-s", "5"]
    with serving(folder / "log", *flags) as server:
        yield server
