"""The scheduler's own counters, on their way out of the engine core: they ride in vLLM's statistics of each step, in a
mapping from names to integers whose other names are vLLM's, and are taken out before vLLM's own loggers look."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

_PREFIX = "burrstone_"


@dataclass(slots=True)
class SchedulerCounters:
    """Since the engine's start, but for `hook_ns` of the last step, arrivals before it included, and `kept_blocks` now."""

    steps: int = 0
    hook_ns: int = 0
    fallbacks: int = 0
    preemptions: int = 0
    relegated: int = 0
    kept_blocks: int = 0

    def attach(self, stats: Any) -> None:
        """Put them into vLLM's SchedulerStats."""
        stats.num_kv_fetch_reqs_by_stage.update({_PREFIX + name: value for name, value in asdict(self).items()})

    @classmethod
    def detach(cls, stats: Any) -> Self | None:
        """Take them out again; None where none are in."""
        carrier = stats.num_kv_fetch_reqs_by_stage
        found = {field.name: carrier.pop(_PREFIX + field.name, None) for field in fields(cls)}
        if any(value is None for value in found.values()):
            return None
        return cls(**found)
