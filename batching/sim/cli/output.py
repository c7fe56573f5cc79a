"""What commands print: tables and JSON on stdout, a progress bar on stderr for what takes longer than two seconds."""

import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_SHOWN_AFTER_S = 2.0
_QUIET_LINE_EVERY_S = 10.0


class ProgressBar:
    """`with ProgressBar() as bar: bar.at(0.4, "slo, seed 2")`. A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=1.0)
        self._started_s = self._printed_s = time.monotonic()
        self._text = ""
        # Compiling takes a while without anybody calling `at`, so the clock shows the bar.
        self._timer = threading.Timer(_SHOWN_AFTER_S, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._bar.stop()

    def at(self, share: float, text: str) -> None:
        """So much of the whole is done, 0 to 1, and this comes now."""
        self._text = text
        self._bar.update(self._task, completed=min(share, 1.0), description=text)
        now_s = time.monotonic()
        if not self._bar.console.is_terminal and now_s - self._printed_s >= _QUIET_LINE_EVERY_S:
            print(f"[{now_s - self._started_s:3.0f} s] {100 * share:3.0f} % {text}", file=sys.stderr, flush=True)
            self._printed_s = now_s

    def _show(self) -> None:
        if self._bar.console.is_terminal:
            self._bar.start()
        else:
            print(self._text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Strict JSON: what is infinite or no number is null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> None:
    """The first `words` columns are no numbers. Nothing is cut: a narrow terminal wraps headings."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A file or a pipe has no width; lines that are broken there are of no use to anybody.
    if title:
        print(title)
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=width).print(table)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
