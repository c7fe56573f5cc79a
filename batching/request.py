"""What the scheduler may know of a request. It is set at the edge, from the key and the wire, never from the body."""

from dataclasses import dataclass, field

# Where a request's metadata travels to the scheduler: Request.sampling_params.extra_args[METADATA_KEY].
METADATA_KEY = "burrstone"


@dataclass(frozen=True, slots=True)
class RequestMeta:
    """`priority`: lower runs first. `deadline_s`: seconds on time.monotonic()'s clock, None for no deadline.

    `asked_deadline_s`: the caller's own, which schedulers may order by; `deadline_s` is the server's limit as well.
    `weight`, `priority`, `ttft_s` and `tpot_s` are the tenant's terms. `notices`: header -> value, which whoever serves
    the request adds for its caller before the answer begins.
    """

    request_id: str
    tenant: str = "default"
    weight: float = 1.0
    priority: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    deadline_s: float | None = None
    asked_deadline_s: float | None = None
    session_id: str | None = None
    program_id: str | None = None
    notices: dict[str, str] = field(default_factory=dict, compare=False)
