"""Refuse early rather than late: whoever would get the first token after the class's target is told when to come back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from burrstone.batching.admission.decision import Decision, GateRequest, GateView, Reject
from burrstone.batching.admission.policy import Admission, taken
from burrstone.batching.admission.prefill_backlog import PrefillBacklog
from burrstone.batching.admission.service_rate import ServiceRate
from burrstone.batching.core.step_model import StepModel

REASON = "ttft"
# Whoever comes back a little too early is refused twice; a little too late is not noticed.
_MARGIN = 1.05


class Prediction(NamedTuple):
    """Seconds until the engine turns to the request, and from then to its first token."""

    wait_s: float
    own_s: float

    @property
    def ttft_s(self) -> float:
        return self.wait_s + self.own_s


class Predictive(Admission):
    """Takes everybody whose class has no `ttft_s`, and everybody until the engine's rate is known.

    A prompt that alone takes longer than its class's target is let in when nothing is ahead of it: waiting would not help.
    """

    name = "predictive"

    def __init__(self, model: StepModel | None = None) -> None:
        super().__init__()
        self.rate = ServiceRate(model)
        self._backlog = PrefillBacklog()
        self._started: dict[int, tuple[float, float]] = {}  # seq -> when, and prefill tokens up to its own last one

    def predict(self, request: GateRequest, view: GateView, now_s: float) -> Prediction:
        """The first token's delay if the request were let in now."""
        rate = self.rate
        tokens = self._backlog.tokens(rate.prefill_token_s, now_s) + view.ahead_prompt_tokens
        wait_s = tokens * rate.prefill_token_s
        wanted = min(request.choices, view.seats)
        lacking = view.running_sequences + view.ahead_sequences + wanted - view.seats
        if lacking > 0 and rate.seat_s is not None:
            wait_s = max(wait_s, lacking * rate.seat_s / view.seats)
        return Prediction(wait_s, rate.base_s + request.prompt_tokens * rate.prefill_token_s)

    def _judge(self, request: GateRequest, view: GateView, now_s: float) -> Decision:
        if request.ttft_s is None or not self.rate.known:
            return taken(request, view)
        predicted = self.predict(request, view, now_s)
        # However long the prompt takes by itself, more than an empty engine cannot be waited for.
        spare_s = max(0.0, request.ttft_s - predicted.own_s)
        if predicted.wait_s <= spare_s:
            return taken(request, view)
        return Reject(_MARGIN * (predicted.wait_s - spare_s) + self._grain_s(view), REASON)

    def _grain_s(self, view: GateView) -> float:
        """Prompts and seats drain one by one, and are seen to have done so a little later."""
        return self.rate.base_s + (0.0 if self.rate.seat_s is None else self.rate.seat_s / view.seats)

    def started(self, request: GateRequest, now_s: float) -> None:
        token_s = self.rate.prefill_token_s
        ahead = self._backlog.tokens(token_s, now_s)
        self._started[request.seq] = (now_s, ahead + request.prompt_tokens)
        self._backlog.add(request.seq, request.prompt_tokens, token_s, now_s, unseen=request.whole)

    def first_token(self, request: GateRequest, now_s: float) -> None:
        start_s, prefill_tokens = self._started[request.seq]
        self._backlog.remove(request.seq, now_s)
        self.rate.observe(prefill_tokens, 0, now_s - start_s)

    def left(self, request: GateRequest, output_tokens: float, now_s: float, *, started: bool, finished: bool) -> None:
        if not started:
            return
        start_s, prefill_tokens = self._started.pop(request.seq)
        self._backlog.remove(request.seq, now_s)
        if finished:
            self.rate.observe_seat(now_s - start_s)
            after_first = max(0.0, output_tokens / request.choices - 1)
            if request.whole or after_first:
                self.rate.observe(prefill_tokens, after_first, now_s - start_s)

    def _save(self, now_s: float) -> dict[str, Any]:
        started = [[seq, now_s - start_s, tokens] for seq, (start_s, tokens) in self._started.items()]
        return {"rate": self.rate.save(), "backlog": self._backlog.save(now_s), "started": started}

    def _load(self, saved: Mapping[str, Any], now_s: float) -> None:
        self.rate.load(saved["rate"])
        self._backlog.load(saved["backlog"], now_s)
        self._started = {seq: (now_s - age_s, tokens) for seq, age_s, tokens in saved["started"]}
