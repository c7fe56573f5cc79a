"""How far a long run is: one bar on stderr, with the time that is left; nothing moves where stderr is no terminal."""

import sys
from typing import Any, Protocol, Self

from tqdm import tqdm


class Bar(Protocol):
    """`start` announces `total` steps, of which `done` were made before; each `step` is one more."""

    def start(self, total: int, what: str, done: int = 0) -> None: ...
    def step(self) -> None: ...
    def say(self, text: str) -> None: ...


class TerminalBar:
    """One bar after the other. Use as a context manager, so that the last one is closed."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def start(self, total: int, what: str, done: int = 0) -> None:
        self.close()
        plain = not sys.stderr.isatty()
        if plain:
            self.say(what)
        self._bar = tqdm(total=total, initial=done, desc=what, file=sys.stderr, disable=plain, leave=False)

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SilentBar:
    """For library use."""

    def start(self, total: int, what: str, done: int = 0) -> None:
        pass

    def step(self) -> None:
        pass

    def say(self, text: str) -> None:
        pass
