"""The gate before the engine: refuses, shortens, or makes wait, in the tenants' fair order, whatever the engine does."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from burrstone.batching.admission.decision import Degrade, GateRequest, Reject
from burrstone.batching.admission.gatekeeper import Gatekeeper
from burrstone.batching.admission.registry import make_admission
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import DeadlineExceeded, Overloaded, ServeError
from burrstone.batching.policies.spec import Knobs
from burrstone.batching.request import RequestMeta
from burrstone.serving.config import SchedulerConfig
from burrstone.serving.metrics import EngineMetrics

NOTICE = "x-burrstone-max-tokens"
_MIN_RETRY_AFTER_FULL_S = 1.0
_MESSAGES = {
    "queue_full": "Too many requests are in flight already",
    "pushed_out": "The queue is full, and others have more right to a place in it",
    "token_rate": "This API key has used up its token rate",
    "ttft": "The first token would come later than this API key's target allows",
    "brownout": "The server is overloaded",
}


@dataclass(frozen=True, slots=True)
class Size:
    """What a generation asks for. `whole`: the engine answers once, with all tokens; max_tokens 0: it generates none."""

    prompt_tokens: int
    max_tokens: int = 0
    choices: int = 1
    whole: bool = False


@dataclass(slots=True)
class Visit:
    """One generation at the gate. `max_tokens`: what it is held to, None where it may have what it asked for."""

    gate: "Gate"
    request: GateRequest
    deadline_s: float | None
    max_tokens: int | None = None
    output_tokens: int = 0
    finished: bool = False
    seated: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def seat(self) -> None:
        """Wait for the turn. Raises DeadlineExceeded, Overloaded when pushed out, or what the gate was closed with."""
        await self.gate.seat(self)

    def first_token(self) -> None:
        """Its first token has come."""
        if not self.request.whole:
            self.gate.first_token(self.request.seq)


class Gate:
    """One engine's. Not thread-safe: it lives on the event loop that serves.

    `model`: step times to predict by until the engine has shown its own.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        metrics: EngineMetrics,
        *,
        engine_seats: int,
        model: StepModel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        admission = make_admission(config.admission, tuple(config.priorities()), model)
        self._keeper = Gatekeeper(
            admission,
            max_running=config.max_running,
            engine_seats=engine_seats,
            knobs=Knobs.from_dict(config.knobs),
        )
        self._seqs = itertools.count()
        self._waiting: dict[int, Visit] = {}

    @property
    def decision_hash(self) -> int:
        """64 bits of every decision so far."""
        return self._keeper.admission.hash

    @contextlib.contextmanager
    def visit(self, meta: RequestMeta, size: Size, *, full: bool = False) -> Iterator[Visit]:
        """Let a generation in; leaving the block frees what it held. Raises Overloaded.

        `full`: there is room for it only if somebody who waits has less right to be here, and is pushed out.
        """
        request = self._request(meta, size)
        visit = Visit(self, request, meta.deadline_s)
        decision = self._keeper.arrive(request, self._clock())
        if isinstance(decision, Reject):
            raise self._refusal(request, decision.reason, decision.retry_after_s)
        try:
            if full:
                self._make_room(request)
            if isinstance(decision, Degrade):
                visit.max_tokens = decision.max_tokens
                meta.notices[NOTICE] = str(decision.max_tokens)
                self._metrics.degraded.labels(self._class(request)).inc()
            yield visit
        finally:
            self._keeper.leave(request.seq, visit.output_tokens, self._clock(), finished=visit.finished)
            self._release()

    async def seat(self, visit: Visit) -> None:
        """Until it is this visit's turn."""
        seq, since_s = visit.request.seq, self._clock()
        self._keeper.wait(seq)
        self._waiting[seq] = visit
        self._release()
        waiting = self._metrics.waiting.labels(self._class(visit.request))
        waiting.inc()
        try:
            async with asyncio.timeout(None if visit.deadline_s is None else visit.deadline_s - self._clock()):
                await visit.seated
        except TimeoutError as error:
            raise DeadlineExceeded("The deadline passed while the request waited for its turn.") from error
        finally:
            self._waiting.pop(seq, None)
            waiting.dec()
            if visit.seated.done() and not visit.seated.cancelled():
                visit.seated.exception()  # seen, even by one who was cancelled before he could look
        self._metrics.wait_s.labels(self._class(visit.request)).observe(self._clock() - since_s)

    def first_token(self, seq: int) -> None:
        self._keeper.first_token(seq, self._clock())

    def turn_away(self, visits: Iterable[Visit], failure: ServeError) -> None:
        """Those of them that wait, wait no longer."""
        for visit in visits:
            if self._waiting.pop(visit.request.seq, None) is not None:
                self._keeper.give_up(visit.request.seq)
                visit.seated.set_exception(failure)

    def close(self, failure: ServeError) -> None:
        """Everybody who waits gets this error."""
        self.turn_away(list(self._waiting.values()), failure)

    def _release(self) -> None:
        """Seat whoever may go in. One who is cancelled in this very moment leaves, and frees the seat again."""
        for seq in self._keeper.release(self._clock()):
            seated = self._waiting.pop(seq).seated
            if not seated.done():
                seated.set_result(None)

    def _make_room(self, request: GateRequest) -> None:
        retry_after_s = max(_MIN_RETRY_AFTER_FULL_S, self._keeper.next_place_s())
        victim = self._keeper.victim(request)
        if victim is None:
            raise self._refusal(request, "queue_full", retry_after_s)
        visit = self._waiting[victim]
        self.turn_away([visit], self._refusal(visit.request, "pushed_out", retry_after_s))

    def _refusal(self, request: GateRequest, reason: str, retry_after_s: float) -> Overloaded:
        self._metrics.refused.labels(self._class(request), reason).inc()
        return Overloaded(f"{_MESSAGES[reason]}; try again in {retry_after_s:.1f} s.", retry_after_s=retry_after_s)

    def _request(self, meta: RequestMeta, size: Size) -> GateRequest:
        terms = self._config.terms(meta.tenant)
        return GateRequest(
            seq=next(self._seqs),
            tenant=meta.tenant,
            prompt_tokens=size.prompt_tokens,
            max_tokens=size.max_tokens,
            choices=size.choices,
            whole=size.whole,
            weight=meta.weight,
            priority=meta.priority,
            ttft_s=meta.ttft_s,
            tokens_per_s=terms.tokens_per_s,
            burst_tokens=terms.burst_tokens,
            max_concurrent=terms.max_concurrent,
        )

    def _class(self, request: GateRequest) -> str:
        return request.tenant if request.tenant in self._config.tenants else "default"
