"""Request ids: the caller's when it is short and plain, ours otherwise."""

import re
import uuid

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id_from(presented: str | None) -> str:
    """The caller's x-request-id if it is 1-64 of [A-Za-z0-9._-]; a fresh one if not, so that logs cannot be forged."""
    if presented and _PLAIN.fullmatch(presented):
        return presented
    return f"req_{uuid.uuid4().hex}"
