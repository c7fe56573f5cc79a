"""The policy at work inside vLLM's scheduler: it orders vLLM's queues and sets the budget of each step, and vLLM does the
rest. Whatever goes wrong in here, vLLM goes on scheduling in its own order.

vLLM's scheduler is not a public interface: what is relied on is held by contract tests.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from burrstone.batching.core.step_log import StepRecord, scheduled_hash
from burrstone.batching.policies.engine_policy import EnginePolicy
from burrstone.serving.engine import vllm_core_compat as vllm
from burrstone.serving.engine.scheduling.kept_caches import KeptCaches
from burrstone.serving.engine.scheduling.options import SchedulerOptions
from burrstone.serving.engine.scheduling.parts import Step, attempt, can_keep, open_step_log
from burrstone.serving.engine.scheduling.policy_ledger import PolicyLedger, compile_kernels
from burrstone.serving.engine.scheduling.stats import SchedulerCounters
from burrstone.serving.engine.scheduling.watchdog import Watchdog

# The mixin stands before a class of vLLM's, which has no types.
_VllmScheduler: Any = object


class PolicyMixin(_VllmScheduler):  # type: ignore[misc]
    """Before vLLM's Scheduler or AsyncScheduler in the order of bases."""

    running: list[Any]
    max_num_active_reqs: int
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start_policy(SchedulerOptions.from_environment(os.environ))

    def start_policy(
        self, options: SchedulerOptions, clock: Callable[[], float] = time.monotonic, watchdog: Watchdog | None = None
    ) -> None:
        """Take up a policy, before the first request."""
        compile_kernels(options.spec, options.model)
        policy = EnginePolicy(
            options.spec,
            options.model,
            max_step_tokens=self.max_num_scheduled_tokens,
            block_tokens=self.block_size,
            decode_tokens=1 + self.num_spec_tokens,
        )
        self.watchdog = watchdog or Watchdog()
        self.counters = SchedulerCounters()
        self.ledger = PolicyLedger(policy, logged=options.step_log is not None)
        self.kept = KeptCaches(self.kv_cache_manager, self.block_size) if can_keep(self, options) else None
        if self.kept is not None:
            self.kv_cache_manager.allocate_slots = self._allocate_slots
        self.step_log = open_step_log(self, options)
        self._clock = clock
        self._end_s = -math.inf
        # The step's own hooks, and those of arrivals since the last step: a hundred may come between two of them.
        self._hook_s = self._arrivals_s = 0.0
        self._updating = False
        self._limits: tuple[int, int] | None = None
        self._parked: list[Any] = []
        # Requests whose grammar is being compiled: the policy does not see them before they can start.
        self._blocked: dict[str, Any] = {}
        self._aside: list[Any] = []
        self._steps: deque[Step] = deque()
        self._served: list[tuple[Any, int]] = []
        self._finished: list[Any] = []
        self._cancelled: list[Any] = []

    def add_request(self, request: Any) -> None:
        known = request.request_id in self.requests
        super().add_request(request)
        if self.watchdog.fallen:
            return
        if request.status == vllm.RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            self._blocked[request.request_id] = request
        elif not known:
            before_s = self._hook_s
            self._hook(self._arrived, request, self._clock())
            self._arrivals_s += self._hook_s - before_s
            self._hook_s = before_s

    def schedule(self, throttle_prefills: bool = False) -> Any:
        step = self._hook(self._decide)
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self._restore()
        if step is not None:
            self._hook(self._decided, step, output)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        step = self._hook(self._end_step)
        self._updating = True
        try:
            outputs = super().update_from_output(scheduler_output, model_runner_output)
        finally:
            self._updating = False
        if step is not None:
            self._hook(self._ended_step, step, scheduler_output)
            self._watch()
        return outputs

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            self.counters.attach(stats)
        return stats

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        if self.kept is not None:
            attempt(self.kept.release_all)
        return bool(super().reset_prefix_cache(*args, **kwargs))

    def shutdown(self) -> None:
        if self.kept is not None:
            attempt(self.kept.release_all)
        if self.step_log is not None:
            attempt(self.step_log.close)
        super().shutdown()

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._hook(self._preempted, request)

    def _update_request_with_output(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        new_token_ids, stopped = super()._update_request_with_output(request, *args, **kwargs)
        if not self.watchdog.fallen:
            self._served.append((request, len(new_token_ids)))
        return new_token_ids, stopped

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._free_request(request, *args, **kwargs)
        self._hook(self._left, request)
        return result

    def _free_request_blocks(self, request: Any) -> None:
        if not (self.kept is not None and self._updating and self._hook(self._keep, request)):
            super()._free_request_blocks(request)

    def _hook(self, work: Callable[..., Any], *args: Any) -> Any:
        """Our part of vLLM's work; None when it is switched off or fails, and then it is off for good."""
        if self.watchdog.fallen:
            return None
        started_s = time.perf_counter()
        try:
            return work(*args)
        except Exception as error:  # noqa: BLE001  the engine outlives every fault of a policy
            self._fall(f"{work.__name__} failed", error)
            return None
        finally:
            self._hook_s += time.perf_counter() - started_s

    def _fall(self, reason: str, error: Exception | None = None) -> None:
        self.watchdog.fall(reason, error)
        self.counters.fallbacks += 1
        self._steps.clear()
        self._blocked.clear()
        for passing in (self._served, self._finished, self._cancelled):
            passing.clear()
        self.ledger.clear()
        kept, self.kept = self.kept, None
        if kept is not None:
            attempt(kept.release_all)
        if self.step_log is not None:
            attempt(self.step_log.close)

    def _watch(self) -> None:
        """At the end of a step, when all the time is known that it spent in here."""
        self.counters.hook_ns = round((self._hook_s + self._arrivals_s) * 1e9)
        if not self.watchdog.fallen and self.watchdog.observe(self._hook_s):
            self._fall(self.watchdog.verdict)
        self._hook_s = self._arrivals_s = 0.0

    def _decide(self) -> Step:
        """Arrange vLLM's queues for this step. They are changed when all is decided, and never left half changed."""
        now_s = self._clock()
        ledger = self.ledger
        if self._blocked:
            self._unblock(now_s)
        if self.kept is not None:
            self.kept.drop_expired(now_s)
        free_slots = self.max_num_active_reqs - len(self.running) - self.num_waiting_for_streaming_input
        free_blocks = self.kv_cache_manager.block_pool.get_num_free_blocks()
        # Without a free slot nobody who waits can start, so neither the policy nor vLLM looks at them.
        startable = () if free_slots <= 0 else self._startable() if self._blocked else self.waiting
        waiting, running = ledger.rows(startable), ledger.rows(self.running)
        plan = ledger.plan(waiting, running, self.running, free_slots=free_slots, free_blocks=free_blocks, now_s=now_s)
        num_served = len(running) - plan.parked
        arranged = self.running if (plan.running == running).all() else ledger.requests(plan.running)
        set_aside = bool(self._blocked) and not ledger.policy.spec.neutral
        if free_slots > 0 and (set_aside or (plan.waiting != waiting).any()):
            requests = ledger.requests(plan.waiting)
            self._aside = list(self._blocked.values())
            self.waiting.clear()
            self.waiting.extend(requests)
        self._limits = (self.max_num_active_reqs, self.max_num_scheduled_tokens)
        self._parked = arranged[num_served:]
        self.running = arranged[:num_served] if plan.parked else arranged
        self.max_num_active_reqs -= plan.parked
        self.max_num_scheduled_tokens = plan.budget
        self._steps.append(Step(now_s, plan.hash, free_blocks, num_served, plan.parked))
        return self._steps[-1]

    def _arrived(self, request: Any, now_s: float) -> None:
        for program in self.ledger.arrived(request, now_s):
            if self.kept is not None:
                self.kept.release(program)

    def _startable(self) -> list[Any]:
        return [request for request in self.waiting if request.request_id not in self._blocked]

    def _unblock(self, now_s: float) -> None:
        """Whose grammar is ready has come now, behind all others; under `fcfs` vLLM sees to place, start and failure."""
        neutral = self.ledger.policy.spec.neutral
        for request in list(self._blocked.values()):
            if _has_grammar(request) if neutral else self._handle_blocked_waiting_request(request):
                del self._blocked[request.request_id]
                self._arrived(request, now_s)
                if not neutral:
                    self.waiting.remove(request)
                    self.waiting.append(request)

    def _restore(self) -> None:
        """Parked requests come back behind the others, with vLLM's own limits."""
        if self._limits is not None:
            self.max_num_active_reqs, self.max_num_scheduled_tokens = self._limits
            self._limits = None
        self.running.extend(self._parked)
        self.waiting.extend(self._aside)
        self._parked, self._aside = [], []

    def _decided(self, step: Step, output: Any) -> None:
        scheduled = output.num_scheduled_tokens
        if step.num_preempted == 0:
            for request in self.running[step.num_served : len(self.running) - step.num_parked]:
                if self._blocked.pop(request.request_id, None) is not None:
                    self._arrived(request, step.now_s)
                cached_tokens = request.num_computed_tokens - scheduled[request.request_id]
                self.ledger.admitted(request, cached_tokens, step.now_s)
        if self.step_log is not None:
            pairs, load = self.ledger.step(scheduled)
            step.record = StepRecord(
                step=self.counters.steps + len(self._steps) - 1,
                now_s=step.now_s,
                plan_hash=step.plan_hash,
                scheduled_hash=scheduled_hash(pairs),
                free_blocks=step.free_blocks,
                num_tokens=output.total_num_scheduled_tokens,
                events=self.ledger.take_events(),
                load=load,
            )

    def _end_step(self) -> Step:
        step = self._steps.popleft()
        start_s = max(step.now_s, self._end_s)  # a step that was decided ahead began when the one before it ended
        elapsed_s = self._clock() - start_s
        self._end_s = start_s + elapsed_s
        if step.record is not None:
            step.record = replace(step.record, elapsed_s=elapsed_s)
        return step

    def _ended_step(self, step: Step, output: Any) -> None:
        served = self._served if not self._cancelled else self._served_or_cancelled(output)
        self.ledger.served(served, self._end_s, self._cancelled)
        for request in self._finished:
            self.ledger.ended(request, cancelled=request.status in _CANCELLED)
        for request in self._cancelled:
            self.ledger.ended(request, cancelled=True, during_step=True)
        for passing in (self._served, self._finished, self._cancelled):
            passing.clear()
        counters = self.counters
        counters.steps += 1
        counters.relegated = self.ledger.relegated
        counters.kept_blocks = 0 if self.kept is None else self.kept.num_blocks
        if self.step_log is not None and step.record is not None:
            self.step_log.write(replace(step.record, hook_s=self._hook_s), idle=not self.running)

    def _served_or_cancelled(self, output: Any) -> list[tuple[Any, int]]:
        """Who was cancelled while the step ran has cost its token all the same; all in the order of the step."""
        tokens = {request.request_id: (request, num_tokens) for request, num_tokens in self._served}
        for request in self._cancelled:
            if request.request_id in output.num_scheduled_tokens and not request.is_prefill_chunk:
                tokens[request.request_id] = (request, 1)
        return [tokens[request_id] for request_id in output.num_scheduled_tokens if request_id in tokens]

    def _preempted(self, request: Any) -> None:
        self.ledger.preempted(request)
        self.counters.preemptions += 1
        if self._steps:
            self._steps[-1].num_preempted += 1

    def _left(self, request: Any) -> None:
        if self._blocked.pop(request.request_id, None) is not None:
            return
        if self._updating:
            self._finished.append(request)
        elif self._steps:
            self._cancelled.append(request)
        else:
            self.ledger.ended(request, cancelled=True)

    def _keep(self, request: Any) -> bool:
        if self.kept is None or request.status in _CANCELLED or not request.is_finished():
            return False
        until = self.ledger.keep_cache_s(request, self._end_s)
        if until is None:
            return False
        blocks = self.kv_cache_manager.pop_blocks_for_free(request)
        try:
            self.kept.keep(*until, blocks)
        except Exception:
            self.kv_cache_manager.block_pool.free_blocks(reversed(blocks))  # nobody else knows of them
            raise
        return True

    def _allocate_slots(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's; in the way of kept caches they are given up, and when that fails all of them."""
        if self.kept is not None:
            try:
                return self._allocate_among(self.kept, request, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  as for a hook
                self._fall("_allocate_slots failed", error)
        return self.kv_cache_manager.__class__.allocate_slots(self.kv_cache_manager, request, *args, **kwargs)

    def _allocate_among(self, kept: KeptCaches, request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.status == vllm.RequestStatus.RUNNING:
            return kept.allocate_running(request, *args, **kwargs)
        entry = self.ledger.entry(request)
        busy = bool(self.running or self._parked)
        younger_than_s = float(self.ledger.policy.requests[entry.row]["program_arrival_s"]) if busy else -math.inf
        return kept.allocate_waiting(entry.program, younger_than_s, request, *args, **kwargs)


def _has_grammar(request: Any) -> bool:
    return not isinstance(request.structured_output_request.grammar, Exception | None)


_CANCELLED = (vllm.RequestStatus.FINISHED_ABORTED, vllm.RequestStatus.FINISHED_ERROR)


class BurrstoneScheduler(PolicyMixin, vllm.Scheduler):  # type: ignore[misc]
    """Where a step is decided when the one before it has ended: on the CPU."""


class BurrstoneAsyncScheduler(PolicyMixin, vllm.AsyncScheduler):  # type: ignore[misc]
    """Where a step is decided while the one before it runs."""


def make_scheduler(*, vllm_config: Any, **kwargs: Any) -> PolicyMixin:
    """vLLM's `scheduler_cls`: called like a scheduler's class, once the configuration is complete."""
    ahead = vllm_config.scheduler_config.async_scheduling
    cls = BurrstoneAsyncScheduler if ahead else BurrstoneScheduler
    return cls(vllm_config=vllm_config, **kwargs)
