"""The soak run's options, its engine, and its report."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from report import Report

from harness import Server, serving

REQUEST_TIMEOUT_S = 120.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, default=None, help="JSON file that the figures are added to")
    parser.addoption("--load-s", type=float, default=300.0, help="seconds of load in the memory run")


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return Report(pytestconfig.getoption("--results"))


@pytest.fixture(scope="session")
def load_s(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.getoption("--load-s"))


@pytest.fixture(scope="session")
def request_timeout_s() -> float:
    """When the engine's server ends a request, whatever its client does."""
    return REQUEST_TIMEOUT_S


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, request_timeout_s: float) -> Iterator[Server]:
    """The real engine; answers are short unless a test asks for long ones."""
    flags = ["--limits.default-max-tokens", "4", "--engine.max-model-len", "2048"]
    flags += ["--limits.request-timeout-s", str(request_timeout_s), "--http.body-timeout-s", "5"]
    # A hundred clients, some with three choices, are all to be running at once.
    flags += ["--max-num-seqs", "192"]
    # Memory of the KV cache counts once it is written to: a small one is all written to soon.
    flags += ["--engine.kv-cache-gib", "1"]
    with serving(tmp_path_factory.mktemp("engine") / "log", *flags) as server:
        yield server
