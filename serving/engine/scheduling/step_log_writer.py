"""Writes the scheduler's step log from inside the engine core. Losing the log never costs a request."""

import logging
import os
import time
from pathlib import Path

from burrstone.batching.core.step_log import LogHeader, StepRecord

log = logging.getLogger("burrstone.scheduler")
# A killed core loses at most what these allow, and nothing but whole lines.
_FLUSH_LINES = 64
_FLUSH_S = 1.0
_MAX_BYTES = 2**30
_KEPT_SUFFIX = ".1"


class StepLogWriter:
    """One engine's log. A log that stands at `path` already is kept beside it, as PATH.1."""

    def __init__(self, path: Path, header: LogHeader, *, max_bytes: int = _MAX_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, path.with_name(path.name + _KEPT_SUFFIX))
        self.path = path
        self._left_bytes = max_bytes
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lines: list[str] = [header.to_line()]
        self._flushed_s = time.monotonic()
        self.flush()

    def write(self, record: StepRecord, *, idle: bool) -> None:
        """Add a step. `idle`: none follows for the time being, so do not keep it back."""
        if self._file is None:
            return
        self._lines.append(record.to_line())
        if idle or len(self._lines) >= _FLUSH_LINES or time.monotonic() - self._flushed_s >= _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hand what was kept back to the system, in one call."""
        if self._file is None or not self._lines:
            return
        data = "".join(line + "\n" for line in self._lines).encode()
        self._lines.clear()
        self._flushed_s = time.monotonic()
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._end("it has reached its largest size")
            return
        try:
            written = os.write(self._file, data)
        except OSError as error:
            self._end(str(error))
            return
        if written < len(data):
            self._end("the disk is full")

    def close(self) -> None:
        """Flush, and write no more."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _end(self, reason: str) -> None:
        log.error("the step log %s ends here: %s", self.path, reason)
        self._lines.clear()
        self.close()
