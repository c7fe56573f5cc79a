"""How far a long run is, on stderr: a bar where tqdm is installed and somebody watches, plain lines elsewhere."""

import sys
import types
from typing import Any, Self


class Progress:
    """Of `total` steps."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._done, self._bar = total, 0, _bar(total, unit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: types.TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def step(self, line: str) -> None:
        """One more is done; line: what."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        self.say(line if self._bar is not None else f"[{self._done}/{self._total}] {line}")


def _bar(total: int, unit: str) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit=unit, file=sys.stderr)
