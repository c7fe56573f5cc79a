"""What our scheduler relies on in vLLM's, a symbol at a time: a bump that moves or changes one fails here, by name."""

import ast
import inspect
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import vllm.v1.engine.core as engine_core
from contracts import Contracts, parameters, source
from vllm.config import SchedulerConfig
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request
from vllm.v1.structured_output.request import StructuredOutputRequest

from burrstone.serving.engine import vllm_core_compat as vllm
from burrstone.serving.engine.scheduling import scheduler as ours
from burrstone.serving.engine.scheduling.options import SCHEDULER_CLS

contract = Contracts()


def attributes_set(function: Any) -> set[str]:
    """Names of the attributes of self that a method assigns."""
    targets: list[ast.expr] = []
    for node in ast.walk(ast.parse(source(function))):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets.append(node.target)
    return {each.attr for each in targets if isinstance(each, ast.Attribute)}


def test_every_symbol_has_a_contract() -> None:
    assert contract.covered == set(vllm.__all__)


@contract("Scheduler")
def test_the_scheduler_has_the_state_that_we_arrange() -> None:
    assert attributes_set(vllm.Scheduler.__init__) >= {
        "running", "waiting", "requests", "max_num_active_reqs", "max_num_scheduled_tokens", "kv_cache_manager",
        "kv_cache_config", "cache_config", "connector", "block_size", "num_waiting_for_streaming_input",
    }  # fmt: skip
    assert issubclass(FCFSRequestQueue, deque)


@contract("Scheduler", "AsyncScheduler")
def test_both_schedulers_call_the_methods_that_we_extend() -> None:
    assert parameters(vllm.Scheduler.schedule) == ["self", "throttle_prefills"]
    assert parameters(vllm.Scheduler.update_from_output) == ["self", "scheduler_output", "model_runner_output"]
    assert parameters(vllm.Scheduler.add_request) == ["self", "request"]
    assert parameters(vllm.Scheduler._preempt_request)[:2] == ["self", "request"]
    assert parameters(vllm.Scheduler._free_request)[:2] == ["self", "request"]
    assert parameters(vllm.Scheduler._free_request_blocks) == ["self", "request"]
    for cls in (vllm.Scheduler, vllm.AsyncScheduler):
        assert parameters(cls._update_request_with_output)[:3] == ["self", "request", "new_token_ids"]
    assert "self._preempt_request(" in source(vllm.Scheduler.schedule)
    assert "self._update_request_with_output(" in source(vllm.Scheduler.update_from_output)
    assert "self._free_request(" in source(vllm.Scheduler.update_from_output)
    assert "self._free_request(" in source(vllm.Scheduler.finish_requests)
    assert "self._free_request_blocks(" in source(vllm.Scheduler._free_blocks)
    assert "self.make_stats(" in source(vllm.Scheduler.update_from_output)
    assert issubclass(vllm.AsyncScheduler, vllm.Scheduler)
    assert "schedule" not in vars(vllm.AsyncScheduler) and "update_from_output" not in vars(vllm.AsyncScheduler)


@contract("Scheduler")
def test_a_step_gives_out_its_budget_and_seats_as_we_count_on() -> None:
    schedule = source(vllm.Scheduler.schedule)
    assert "token_budget = self.max_num_scheduled_tokens" in schedule
    assert "if num_running >= self.max_num_active_reqs:" in schedule
    assert "preempted_req = self.running.pop()" in schedule, "the last running request is preempted first"
    assert "if not preempted_reqs and" in schedule, "nobody is admitted in a step that preempts"
    assert "self.running.append(request)" in schedule, "who is admitted stands behind who runs"


@contract("Scheduler", "RequestStatus")
def test_a_request_waits_for_its_grammar_in_the_queue() -> None:
    assert parameters(vllm.Scheduler._handle_blocked_waiting_request) == ["self", "request"]
    handle = source(vllm.Scheduler._handle_blocked_waiting_request)
    assert "request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR" in handle
    assert "self.grammar_compile_error_reqs.add(request.request_id)" in handle
    assert isinstance(StructuredOutputRequest.grammar, property)


@contract("RequestStatus")
def test_requests_have_the_fields_that_we_read() -> None:
    status = vllm.RequestStatus
    ended = (status.FINISHED_ABORTED, status.FINISHED_ERROR, status.FINISHED_STOPPED, status.FINISHED_LENGTH_CAPPED)
    assert all(status.is_finished(each) for each in ended) and not status.is_finished(status.RUNNING)
    assert attributes_set(Request.__init__) >= {
        "request_id", "sampling_params", "arrival_time", "max_tokens", "num_prompt_tokens", "num_computed_tokens",
        "num_output_placeholders", "is_prefill_chunk", "block_hashes", "status",
    }  # fmt: skip
    assert isinstance(Request.num_output_tokens, property) and isinstance(Request.num_tokens, property)


@contract("is_full_attention_spec")
def test_blocks_can_be_taken_kept_and_given_back() -> None:
    assert parameters(KVCacheManager.pop_blocks_for_free) == ["self", "request"]
    allocate = inspect.signature(KVCacheManager.allocate_slots)
    assert list(allocate.parameters)[:3] == ["self", "request", "num_new_tokens"]
    assert "new_computed_blocks=new_computed_blocks" in source(vllm.Scheduler.schedule)
    assert parameters(BlockPool.touch) == ["self", "blocks"]
    assert parameters(BlockPool.free_blocks) == ["self", "ordered_blocks"]
    assert callable(BlockPool.get_num_free_blocks)
    assert parameters(vllm.is_full_attention_spec) == ["kv_cache_spec"]
    assert "reversed(blocks)" in source(vllm.Scheduler._drain_deferred_frees), "blocks are popped in sequence order"


@contract("Scheduler")
def test_the_counters_carrier_takes_any_name() -> None:
    assert SchedulerStats.__dataclass_fields__["num_kv_fetch_reqs_by_stage"].type == dict[str, int]
    assert SchedulerStats().num_kv_fetch_reqs_by_stage == {}


@contract("Scheduler", "AsyncScheduler")
def test_the_scheduler_is_made_when_it_is_known_whether_steps_are_decided_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM calls what `scheduler_cls` names; it need not be a class."""
    made: list[str] = []
    for cls in (ours.BurrstoneScheduler, ours.BurrstoneAsyncScheduler):
        monkeypatch.setattr(cls, "__init__", lambda self, **_: made.append(type(self).__name__))
    for ahead in (False, True):
        config = SchedulerConfig(max_model_len=64, max_num_batched_tokens=256, is_encoder_decoder=False)
        config.scheduler_cls, config.async_scheduling = SCHEDULER_CLS, ahead
        config.get_scheduler_cls()(vllm_config=SimpleNamespace(scheduler_config=config), log_stats=False)
    assert made == ["BurrstoneScheduler", "BurrstoneAsyncScheduler"]
    assert "vllm_config.scheduler_config.get_scheduler_cls()" in source(engine_core.EngineCore.__init__)
