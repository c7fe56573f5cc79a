"""Errors of the chat dialect, told in the field names of the dialect that the caller spoke."""

import re
from collections.abc import Sequence

from burrstone.batching.errors import ServeError

# (pattern of a chat field, the caller's field); the first that matches the start of `param` is used.
Renames = Sequence[tuple[str, str]]


def renamed(error: ServeError, renames: Renames) -> ServeError:
    """The same error about the caller's own field."""
    if error.param is None:
        return error
    for pattern, ours in renames:
        param, count = re.subn(rf"\A(?:{pattern})(?=\Z|[.\[])", ours, error.param)
        if count:
            message = error.message.replace(error.param, param)
            return type(error)(message, param=param, code=error.code, retry_after_s=error.retry_after_s)
    return error
