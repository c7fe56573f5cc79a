"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from burrstone.batching.errors import UsageError
from burrstone.quant.disk import settle


def check_writable(flag: str, file: Path) -> None:
    """Raises UsageError where a file could not be written, before what it is to hold has been measured."""
    if file.is_dir():
        raise UsageError(f"{flag} {file} is a folder; name a file in it")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{flag} {file} cannot be written: {folder} is no folder that may be written to")


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Where to write what becomes `file` once the body is through; if it fails, what was there before stays. Its folder
    is made. Raises UsageError where it cannot be written.
    """
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        settle(scratch, file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
