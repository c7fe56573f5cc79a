"""Files that are on the disk whole or not at all, and errors of the disk said to the person at the command line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from burrstone.quant.errors import OutOfSpace, QuantizeError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors wraps the error and leaves its words.
_FULL_WORDS = ("No space left", "quota exceeded", "File too large")


@contextlib.contextmanager
def disk_errors(folder: Path, advice: str = "make room and run again") -> Iterator[None]:
    """What fails in writing to `folder` becomes OutOfSpace or QuantizeError."""
    try:
        yield
    except QuantizeError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in _FULL or any(word in str(error) for word in _FULL_WORDS):
            raise OutOfSpace(f"{folder}: the disk is full; {advice}") from error
        if isinstance(error, OSError):
            raise QuantizeError(f"{folder} cannot be written: {error.strerror or error}") from error
        raise


def write_text(file: Path, text: str) -> None:
    """Raises OutOfSpace and QuantizeError."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    with disk_errors(file.parent):
        try:
            scratch.write_text(text, encoding="utf-8")
            settle(scratch, file)
        finally:
            scratch.unlink(missing_ok=True)


def settle(scratch: Path, file: Path) -> None:
    """Make `file` of a scratch file beside it. Power may fail at any moment."""
    sync(scratch)
    os.replace(scratch, file)
    sync(file.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
