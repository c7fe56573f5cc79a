"""Ids that callers may choose: short and plain, or they are not taken."""

import re
import uuid

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id_from(presented: str | None) -> str:
    """The caller's x-request-id if it is 1-64 of [A-Za-z0-9._-]; a fresh one if not, so that logs cannot be forged."""
    if presented and _PLAIN.fullmatch(presented):
        return presented
    return f"req_{uuid.uuid4().hex}"


def scoped_id_from(presented: str | None, tenant: str) -> str | None:
    """The caller's id if it is 1-64 of [A-Za-z0-9._-], within its tenant: no one can name another's session or program."""
    if presented and _PLAIN.fullmatch(presented):
        return f"{tenant}/{presented}"
    return None
