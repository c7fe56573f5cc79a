"""The scheduler's counters as Prometheus metrics, in the front end."""

from collections.abc import Callable
from typing import Any

from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.scheduling.stats import SchedulerCounters
from burrstone.serving.metrics import SchedulerMetrics


class SchedulerStatLogger(vllm.StatLoggerBase):  # type: ignore[misc]
    """One engine core's. vLLM calls `record` after each step, before its own loggers."""

    def __init__(self, metrics: SchedulerMetrics) -> None:
        self._metrics = metrics
        self._seen = SchedulerCounters()

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        counters = None if scheduler_stats is None else SchedulerCounters.detach(scheduler_stats)
        if counters is None:
            return
        seen, self._seen = self._seen, counters
        self._metrics.fallbacks.inc(counters.fallbacks - seen.fallbacks)
        self._metrics.preemptions.inc(counters.preemptions - seen.preemptions)
        self._metrics.relegated.inc(counters.relegated - seen.relegated)
        self._metrics.kept_blocks.set(counters.kept_blocks)
        if counters.steps > seen.steps:
            self._metrics.hook_s.observe(counters.hook_ns * 1e-9)

    def log_engine_initialized(self) -> None:
        """There is nothing to say."""


def stat_loggers(metrics: SchedulerMetrics) -> list[Callable[..., SchedulerStatLogger]]:
    """What AsyncLLM takes as its `stat_loggers`."""
    return [lambda vllm_config, engine_index=0: SchedulerStatLogger(metrics)]
