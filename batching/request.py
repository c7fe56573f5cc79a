"""What the scheduler may know of a request. It is set at the edge, from the key and the wire, never from the body."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestMeta:
    """`priority`: lower runs first. `deadline_s`: seconds on time.monotonic()'s clock, None for no deadline."""

    request_id: str
    tenant: str = "default"
    priority: int = 0
    deadline_s: float | None = None
    session_id: str | None = None
    program_id: str | None = None
