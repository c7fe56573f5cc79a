"""What our scheduler is put together from, by what vLLM's scheduler under it is and has."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burrstone.batching.core.step_log import LogHeader, StepRecord
from burrstone.serving.engine import vllm_core_compat as vllm
from burrstone.serving.engine.scheduling.options import SchedulerOptions
from burrstone.serving.engine.scheduling.program_book import MAX_TENANTS
from burrstone.serving.engine.scheduling.step_log_writer import StepLogWriter

log = logging.getLogger("burrstone.scheduler")


@dataclass(slots=True)
class Step:
    """A step between its decision and its end. `num_served`: running requests that are not parked."""

    now_s: float
    plan_hash: int
    free_blocks: int
    num_served: int
    num_parked: int
    num_preempted: int = 0
    record: StepRecord | None = None


def attempt(work: Callable[[], object]) -> None:
    """Clear up after the policy: a failure is logged, and what comes next is done all the same."""
    try:
        work()
    except Exception:
        log.exception("clearing up after the scheduling policy failed, which is borne")


def can_keep(scheduler: Any, options: SchedulerOptions) -> bool:
    """Whether finished calls' KV caches may be kept: by the policy, and on one group of blocks that nobody else shares."""
    groups = scheduler.kv_cache_config.kv_cache_groups
    return (
        "program" in options.spec.tiers
        and options.spec.knobs.ttl_s > 0
        and scheduler.cache_config.enable_prefix_caching
        and scheduler.connector is None
        and len(groups) == 1
        and vllm.is_full_attention_spec(groups[0].kv_cache_spec)
    )


def open_step_log(scheduler: Any, options: SchedulerOptions) -> StepLogWriter | None:
    """The step log, if one is asked for, with the engine's description in it; each rank of data parallelism has its own.

    Raises OSError where it cannot be written.
    """
    if options.step_log is None:
        return None
    header = LogHeader(
        policy=str(options.spec),
        max_num_seqs=scheduler.max_num_active_reqs,
        max_num_batched_tokens=scheduler.max_num_scheduled_tokens,
        block_size=scheduler.block_size,
        num_blocks=scheduler.kv_cache_config.num_blocks - 1,  # vLLM keeps one for itself
        prefix_caching=bool(scheduler.cache_config.enable_prefix_caching),
        model=asdict(options.model),
        knobs=options.knobs,
        num_tenants=MAX_TENANTS,
    )
    rank = scheduler.parallel_config.data_parallel_index
    return StepLogWriter(Path(options.step_log if rank == 0 else f"{options.step_log}.rank{rank}"), header)
