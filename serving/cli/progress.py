"""One line that says what is going on and for how long: a spinner on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

_QUIET_LINE_EVERY_S = 10.0


class Progress:
    """`with Progress() as p: p.say("loading")`. Lines go to stderr; stdout stays for results."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = self._console.status("") if self._console.is_terminal else None
        self._text = ""
        self._started_s = self._step_s = self._printed_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """Show this step; calling it again with the same text keeps the clock of the step running."""
        now_s = time.monotonic()
        changed = text != self._text
        if changed:
            self._text, self._step_s = text, now_s
        elapsed = f"[{now_s - self._started_s:5.1f} s] {text}"
        if self._status is not None:
            self._status.update(f"{elapsed} ({now_s - self._step_s:.0f} s)")
        elif changed or now_s - self._printed_s >= _QUIET_LINE_EVERY_S:
            print(elapsed, file=sys.stderr, flush=True)
            self._printed_s = now_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s
