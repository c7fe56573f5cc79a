"""The vLLM imports of what runs inside its engine core. Apart from vllm_compat, whose front end a core does not load."""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import is_full_attention_spec
from vllm.v1.request import RequestStatus

__all__ = ["AsyncScheduler", "RequestStatus", "Scheduler", "is_full_attention_spec"]
