"""The seam: the one class between vLLM's serving objects and AsyncLLM, where everything of ours about a generation happens.

vLLM's serving objects see an engine client; whoever generates tokens goes through `generate` here, so that request
metadata, admission, the deadline, metering and engine death are handled once for every endpoint and both wires.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from burrstone.batching.errors import (
    ClientGone,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServeError,
)
from burrstone.batching.request import METADATA_KEY, RequestMeta
from burrstone.serving.config import LimitsConfig
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.gate import Gate, Size, Visit
from burrstone.serving.metrics import EngineMetrics

_RETRY_AFTER_ENGINE_DEATH_S = 10.0
_BAD_GRAMMAR = "The engine could not follow the request's grammar: it is too complex, or allows no text at all."
# Programs that the scheduler has not been told to be at rest; the oldest are forgotten, for they cost only memory.
_MAX_RESTED = 1024
# Grammars checked at a time; further ones wait for their turn, whoever sent them.
_NUM_GRAMMAR_CHECKS = 2


@dataclass(slots=True)
class Call:
    """One API call and what its generations used. `default_max_tokens` applies when the request named no limit."""

    meta: RequestMeta
    default_max_tokens: int | None = None
    started_s: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float | None = None
    failure: ServeError | None = None
    active: dict[str, Visit] = field(default_factory=dict)  # engine request id -> its visit, until it is finished


current_call: ContextVar[Call] = ContextVar("burrstone_call")


class EngineSeam:
    """vLLM's EngineClient protocol over one AsyncLLM. Whatever is not ours here is the engine's own."""

    def __init__(self, engine: Any, limits: LimitsConfig, metrics: EngineMetrics, gate: Gate) -> None:
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self.gate = gate
        self._running: dict[str, Call] = {}  # engine request id -> its call
        self._rested: dict[tuple[str, str], None] = {}  # (tenant, program id), in order of coming to rest
        self._aborts: set[asyncio.Task[None]] = set()  # the loop holds its tasks only weakly
        self._grammar_checks = ThreadPoolExecutor(_NUM_GRAMMAR_CHECKS, thread_name_prefix="grammar")
        vllm.check_grammars_once()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def num_running(self) -> int:
        """Generations inside the engine or its queue."""
        return len(self._running)

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Generate for the current call. Closing the generator aborts the request in the engine."""
        call = current_call.get()
        structured = sampling_params.structured_outputs is not None
        if call.default_max_tokens is not None:
            sampling_params.max_tokens = min(sampling_params.max_tokens, call.default_max_tokens)

        async def begin(visit: Visit) -> AsyncGenerator[Any, None]:
            if structured:
                await self._check_grammar(call, sampling_params)
            await visit.seat()
            self._apply_metadata(call, sampling_params, kwargs)
            if visit.max_tokens is not None:
                sampling_params.max_tokens = min(sampling_params.max_tokens, visit.max_tokens)
            outputs = self._engine.generate(_of_tenant(prompt, call.meta), sampling_params, request_id, **kwargs)
            return _grammar_followed(outputs, call) if structured else outputs

        whole = sampling_params.output_kind == vllm.RequestOutputKind.FINAL_ONLY
        size = Size(_num_prompt_tokens(prompt), sampling_params.max_tokens, sampling_params.n, whole=whole)
        return self._run(call, request_id, begin, size)

    def encode(self, prompt: Any, pooling_params: Any, request_id: str, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Pool for the current call."""
        call = current_call.get()
        kwargs["priority"] = call.meta.priority

        async def begin(visit: Visit) -> AsyncGenerator[Any, None]:
            await visit.seat()
            pooled: AsyncGenerator[Any, None] = self._engine.encode(
                _of_tenant(prompt, call.meta), pooling_params, request_id, **kwargs
            )
            return pooled

        return self._run(call, request_id, begin, Size(_num_prompt_tokens(prompt), whole=True))

    def rest(self, meta: RequestMeta, *, rests: bool) -> None:
        """Whether the call's program was answered without a tool call, so that nothing of it is to be expected soon.

        The scheduler is told with the next request, whoever sends it. If that one never gets there, the program's cache
        is kept until its time is over, as it would have been.
        """
        if meta.program_id is None:
            return
        program = (meta.tenant, meta.program_id)
        self._rested.pop(program, None)
        others = (call.meta for call in self._running.values() if call.meta is not meta)
        if rests and all((other.tenant, other.program_id) != program for other in others):
            self._rested[program] = None
            if len(self._rested) > _MAX_RESTED:
                del self._rested[next(iter(self._rested))]

    async def abandon(self, call: Call) -> None:
        """Abort whatever of this call is still in the engine or at the gate. Idempotent; for when nobody reads on."""
        if call.active:
            self.gate.turn_away(call.active.values(), ClientGone("Nobody reads this answer any more."))
            await self._engine.abort(list(call.active))

    async def end_running(self, failure: ServeError) -> None:
        """End every generation that is in the engine or at the gate with this error."""
        for call in self._running.values():
            call.failure = call.failure or failure
        self.gate.close(failure)
        await self._engine.abort(list(self._running))

    async def _run(
        self,
        call: Call,
        request_id: str,
        begin: Callable[[Visit], Awaitable[AsyncGenerator[Any, None]]],
        size: Size,
    ) -> AsyncGenerator[Any, None]:
        """Everything that holds for each generation."""
        expiry: asyncio.TimerHandle | None = None
        self._running[request_id] = call
        self._metrics.running.inc()
        prefilled = False
        try:
            self._admit(call)
            full = self.num_running > self._limits.max_queued_requests
            with self.gate.visit(call.meta, size, full=full) as visit:
                call.active[request_id] = visit
                outputs = await begin(visit)
                if call.failure is not None:  # ended while it waited
                    raise call.failure
                expiry = self._arm_deadline(call, request_id)
                async with contextlib.aclosing(outputs):
                    async for output in outputs:
                        new_tokens = _num_new_tokens(output)
                        call.output_tokens += new_tokens
                        visit.output_tokens += new_tokens
                        if not prefilled and (new_tokens or output.finished):
                            prefilled = True
                            visit.first_token()
                            self._meter_prompt(call, output, whole=size.whole)
                        if output.finished and call.failure is not None:
                            raise call.failure
                        visit.finished = output.finished
                        yield output
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.cancelled.inc()
            raise
        except Exception as error:
            if call.failure is None:
                call.failure = known_failure(error)
            raise
        finally:
            self._running.pop(request_id, None)
            call.active.pop(request_id, None)
            self._metrics.running.dec()
            if expiry is not None:
                expiry.cancel()

    def _admit(self, call: Call) -> None:
        if self._engine.errored:
            raise NotReady("The engine has died and is being replaced.", retry_after_s=_RETRY_AFTER_ENGINE_DEATH_S)
        if call.meta.deadline_s is not None and call.meta.deadline_s <= time.monotonic():
            raise DeadlineExceeded("The deadline had passed before the request reached the engine.")

    async def _check_grammar(self, call: Call, sampling_params: Any) -> None:
        # Off the event loop: a hostile grammar takes seconds, in which every other stream would stand still.
        loop = asyncio.get_running_loop()
        check = loop.run_in_executor(self._grammar_checks, vllm.check_grammar, self._engine, sampling_params)
        remaining_s = None if call.meta.deadline_s is None else call.meta.deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(remaining_s):
                await check
        except TimeoutError as error:
            raise DeadlineExceeded("The deadline passed while the request's grammar was being checked.") from error

    def _apply_metadata(self, call: Call, sampling_params: Any, kwargs: dict[str, Any]) -> None:
        meta = call.meta
        kwargs["priority"] = meta.priority
        kwargs["session_id"] = meta.session_id
        extra = dict(sampling_params.extra_args or {})
        # Deadlines cross a process boundary as wall-clock time: monotonic clocks may differ in their zero.
        asked_s = meta.asked_deadline_s
        deadline_unix_s = None if asked_s is None else time.time() + asked_s - time.monotonic()
        extra[METADATA_KEY] = {
            "tenant": meta.tenant,
            "weight": meta.weight,
            "priority": meta.priority,
            "ttft_s": meta.ttft_s,
            "tpot_s": meta.tpot_s,
            "deadline_unix_s": deadline_unix_s,
            "program_id": meta.program_id,
            "session": meta.session_id,
            "rested": self._take_rested(meta),
        }
        sampling_params.extra_args = extra

    def _take_rested(self, meta: RequestMeta) -> list[tuple[str, str]]:
        """Those that rest, but for this call's own program, which does so no more."""
        if meta.program_id is not None:
            self._rested.pop((meta.tenant, meta.program_id), None)
        rested = list(self._rested)
        self._rested.clear()
        return rested

    def _arm_deadline(self, call: Call, request_id: str) -> asyncio.TimerHandle | None:
        if call.meta.deadline_s is None:
            return None
        loop = asyncio.get_running_loop()

        def expire() -> None:
            call.failure = DeadlineExceeded("The request ran past its deadline and was stopped.")
            task = loop.create_task(self._engine.abort(request_id))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

        return loop.call_later(call.meta.deadline_s - time.monotonic(), expire)

    def _meter_prompt(self, call: Call, output: Any, *, whole: bool) -> None:
        if call.first_token_s is None:
            call.first_token_s = time.monotonic()
            if not whole:
                self._metrics.time_to_first_token_s.observe(call.first_token_s - call.started_s)
        call.prompt_tokens += len(output.prompt_token_ids or ())
        call.cached_tokens += output.num_cached_tokens or 0


def _num_prompt_tokens(prompt: Any) -> int:
    return len(prompt.get("prompt_token_ids") or ())


def _num_new_tokens(output: Any) -> int:
    choices = output.outputs
    return sum(len(choice.token_ids) for choice in choices) if isinstance(choices, list) else 0


async def _grammar_followed(outputs: AsyncGenerator[Any, None], call: Call) -> AsyncGenerator[Any, None]:
    """The outputs; a request that the engine gave up (the grammar would not compile, or allowed no token) has failed."""
    async with contextlib.aclosing(outputs):
        async for output in outputs:
            if output.finished and any(choice.finish_reason == "error" for choice in output.outputs):
                call.failure = call.failure or InvalidRequest(_BAD_GRAMMAR, code="invalid_value")
            yield output


def _of_tenant(prompt: Any, meta: RequestMeta) -> Any:
    """The engine input with the tenant as its cache salt: tenants share no prefix, so none can time another's prompts."""
    return {**prompt, "cache_salt": f"tenant:{meta.tenant}"}


def known_failure(error: Exception) -> ServeError | None:
    """What we can say better than vLLM's own error frame, which the API layer translates otherwise."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, vllm.EngineDeadError):
        return NotReady("The engine died; the request was lost.", retry_after_s=_RETRY_AFTER_ENGINE_DEATH_S)
    if isinstance(error, vllm.GracefulHTTPError):
        return Overloaded("The engine's queue is full; try again shortly.", retry_after_s=1.0)
    return None
