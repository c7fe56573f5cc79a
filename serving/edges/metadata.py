"""What the scheduler is told of a request: the one place where a tenant's terms are looked up, for both wires."""

import time
from collections.abc import Callable

from burrstone.batching.request import RequestMeta
from burrstone.serving.config import SchedulerConfig
from burrstone.serving.edges.ids import scoped_id_from


def request_meta(
    scheduler: SchedulerConfig,
    header: Callable[[str], str | None],
    *,
    tenant: str,
    request_id: str,
    timeout_s: float,
    asked_timeout_s: float | None = None,
) -> RequestMeta:
    """`header` gives a header or metadata value by its name. A call without a program belongs to its session's.

    `timeout_s`: when it is ended. `asked_timeout_s`: what the caller itself asked for, if anything.
    """
    terms = scheduler.terms(tenant)
    now_s = time.monotonic()
    session_id = scoped_id_from(header("x-session-id"), tenant)
    return RequestMeta(
        request_id=request_id,
        tenant=tenant,
        weight=terms.weight,
        priority=terms.priority,
        ttft_s=terms.ttft_s,
        tpot_s=terms.tpot_s,
        deadline_s=now_s + timeout_s,
        asked_deadline_s=None if asked_timeout_s is None else now_s + asked_timeout_s,
        session_id=session_id,
        program_id=scoped_id_from(header("x-program-id"), tenant) or session_id,
    )
