"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from burrstone.batching.errors import UsageError
from burrstone.quant.disk import settle


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
