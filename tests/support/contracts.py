"""For tests that hold what we rely on in vLLM, a symbol at a time, so that none of a module's symbols is without one."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

_Test = TypeVar("_Test", bound=Callable[..., Any])


class Contracts:
    """The symbols that a file's tests hold."""

    def __init__(self) -> None:
        self.covered: set[str] = set()

    def __call__(self, *symbols: str) -> Callable[[_Test], _Test]:
        """Says which symbols a test holds."""
        self.covered.update(symbols)
        return lambda test: test


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(function: Any) -> str:
    return textwrap.dedent(inspect.getsource(function))
