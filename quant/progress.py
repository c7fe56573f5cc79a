"""How far a long run is: a bar on stderr with the time that is left, or a line of it now and then where that is no terminal."""

import sys
import time
from typing import Any, Protocol, Self

from tqdm import tqdm

_LINE_EVERY_S = 10.0


class Bar(Protocol):
    """`start` announces `total` steps, of which `done` were made before; each `step` is one more."""

    def start(self, total: int, what: str, done: int = 0) -> None: ...
    def step(self) -> None: ...
    def say(self, text: str) -> None: ...


class TerminalBar:
    """One bar after the other. Use as a context manager, so that the last one is closed."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._plain = not sys.stderr.isatty()
        self._what, self._total, self._first, self._done = "", 0, 0, 0
        self._started_s = self._said_s = 0.0

    def start(self, total: int, what: str, done: int = 0) -> None:
        self.close()
        self._what, self._total, self._first, self._done = what, total, done, done
        self._started_s = self._said_s = time.monotonic()
        if self._plain:
            self.say(f"{what}, from {done} of {total}" if done else what)
        else:
            self._bar = tqdm(total=total, initial=done, desc=what, file=sys.stderr, leave=False)

    def step(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif (now_s := time.monotonic()) - self._said_s >= _LINE_EVERY_S:
            self._said_s = now_s
            left_s = (now_s - self._started_s) / (self._done - self._first) * (self._total - self._done)
            left = tqdm.format_interval(left_s)
            self.say(f"{self._what}: {self._done} of {self._total}, about {left} left")

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
