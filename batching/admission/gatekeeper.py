"""The gate without a clock or an event loop: a policy decides who is taken, a fair queue decides when."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from burrstone.batching.admission.decision import (
    FIRST_HASH,
    Decision,
    Degrade,
    GateRequest,
    GateView,
    Reject,
    decision_hash,
)
from burrstone.batching.admission.fair_queue import FairQueue, Waiter
from burrstone.batching.admission.output_lengths import OutputLengths
from burrstone.batching.admission.policy import Admission
from burrstone.batching.admission.service_rate import ServiceRate
from burrstone.batching.policies.spec import Knobs


@dataclass(slots=True)
class _Visitor:
    request: GateRequest
    expected_tokens: float  # output, as charged at the door
    started_s: float | None = None

    @property
    def started(self) -> bool:
        return self.started_s is not None


class Gatekeeper:
    """A request arrives, waits, is released, and leaves: whatever became of it, `leave` is its last call.

    `max_running`: sequences let through at a time, None where the engine decides. `engine_seats`: what it runs at once.
    `knobs`: prompt_weight and output_weight, as in the engine's vtc.
    """

    def __init__(
        self, admission: Admission, *, max_running: int | None, engine_seats: int, knobs: Knobs | None = None
    ) -> None:
        self.admission = admission
        self._knobs = knobs or Knobs()
        self.queue = FairQueue(max_running)
        self.seats = engine_seats if max_running is None else min(max_running, engine_seats)
        self._lengths = OutputLengths()
        self._rate = ServiceRate()
        self._visitors: dict[int, _Visitor] = {}
        _compile_kernels()

    def arrive(self, request: GateRequest, now_s: float) -> Decision:
        """The policy's decision. Unless it is a Reject, `wait` and `leave` follow."""
        waiter = self._waiter(request)
        ahead = self.queue.ahead(waiter)
        view = GateView(
            seats=self.seats,
            running_sequences=self.queue.running,
            waiting_sequences=self.queue.waiting,
            ahead_sequences=ahead.sequences,
            ahead_prompt_tokens=ahead.prompt_tokens,
            expected_tokens=self._expected_tokens(request),
        )
        decision = self.admission.decide(request, view, now_s)
        if isinstance(decision, Degrade):
            request = replace(request, max_tokens=decision.max_tokens)
        if not isinstance(decision, Reject):
            self._visitors[request.seq] = _Visitor(request, self._expected_tokens(request))
        return decision

    def wait(self, seq: int) -> None:
        """To the end of its tenant's line."""
        self.queue.put(self._waiter(self._visitors[seq].request))

    def release(self, now_s: float) -> list[int]:
        """Whoever may go into the engine now, in this order."""
        released = []
        while (waiter := self.queue.pop()) is not None:
            visitor = self._visitors[waiter.seq]
            visitor.started_s = now_s
            self.admission.started(visitor.request, now_s)
            released.append(waiter.seq)
        return released

    def give_up(self, seq: int) -> None:
        """Out of the line; `leave` follows."""
        self.queue.remove(seq)

    def first_token(self, seq: int, now_s: float) -> None:
        """Its first token came. Not to be told of a whole answer."""
        self.admission.first_token(self._visitors[seq].request, now_s)

    def leave(self, seq: int, output_tokens: int, now_s: float, *, finished: bool) -> None:
        """It is gone: finished by the engine, or cancelled wherever it was."""
        visitor = self._visitors.pop(seq)
        request = visitor.request
        unseen = request.whole and not finished and output_tokens == 0
        # What a whole answer took shows at its end only: cut short, it is charged what was expected.
        charged_tokens = visitor.expected_tokens if unseen else output_tokens
        if not self.queue.remove(seq):
            self.queue.leave(seq, self._cost(request.prompt_tokens, charged_tokens))
        if visitor.started_s is not None:
            self._rate.observe_seat(now_s - visitor.started_s)
        if visitor.started and finished and request.max_tokens:
            self._lengths.observe(request.tenant, output_tokens / request.choices)
        self.admission.left(request, charged_tokens, now_s, started=visitor.started, finished=finished)

    def victim(self, request: GateRequest) -> int | None:
        """Who waits here and should make room for this request in a full house; None: nobody."""
        return self.queue.victim(self._waiter(request))

    def next_place_s(self) -> float:
        """Until one of those that run will have left, as long as they lately took; 0 before any has."""
        return (self._rate.seat_s or 0.0) / max(1, self.queue.num_seated)

    def save(self, now_s: float) -> dict[str, Any]:
        """All that later decisions depend on, as JSON values."""
        visitors = [
            [
                asdict(visitor.request),
                visitor.expected_tokens,
                None if visitor.started_s is None else now_s - visitor.started_s,
            ]
            for visitor in self._visitors.values()
        ]
        return {
            "admission": self.admission.save(now_s),
            "queue": self.queue.save(),
            "lengths": self._lengths.save(),
            "rate": self._rate.save(),
            "visitors": visitors,
        }

    def load(self, saved: Mapping[str, Any], now_s: float) -> None:
        """Take up where `save` was called; times go on from `now_s` on this gate's own clock."""
        self.admission.load(saved["admission"], now_s)
        self.queue = FairQueue.restored(saved["queue"], self.queue.seats)
        self._lengths.load(saved["lengths"])
        self._rate.load(saved["rate"])
        visitors = [
            _Visitor(GateRequest(**values), expected_tokens, None if age_s is None else now_s - age_s)
            for values, expected_tokens, age_s in saved["visitors"]
        ]
        self._visitors = {visitor.request.seq: visitor for visitor in visitors}

    def _expected_tokens(self, request: GateRequest) -> float:
        return request.choices * self._lengths.expected(request.tenant, request.max_tokens)

    def _cost(self, prompt_tokens: int, output_tokens: float) -> float:
        return self._knobs.prompt_weight * prompt_tokens + self._knobs.output_weight * output_tokens

    def _waiter(self, request: GateRequest) -> Waiter:
        return Waiter(
            seq=request.seq,
            tenant=request.tenant,
            sequences=request.choices,
            prompt_tokens=request.prompt_tokens,
            cost=self._cost(request.prompt_tokens, self._expected_tokens(request)),
            weight=request.weight,
            priority=request.priority,
            max_concurrent=request.max_concurrent,
        )


def _compile_kernels() -> None:
    """Now, where the gate is built, and not while the first request waits."""
    lengths = OutputLengths()
    lengths.observe("", 1.0)
    lengths.expected("", 1)
    for decision in (Reject(1.0, ""), Degrade(1)):
        decision_hash(FIRST_HASH, GateRequest(seq=0, tenant="", prompt_tokens=0, max_tokens=0), decision)
