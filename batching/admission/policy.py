"""Admission: who is let in, who waits, who gets less, who is told to come back. Pure: every call is told the time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from burrstone.batching.admission.decision import (
    FIRST_HASH,
    Admit,
    Decision,
    GateRequest,
    GateView,
    Queue,
    decision_hash,
)


class Admission(ABC):
    """One policy at work at one gate. `hash` covers every decision so far."""

    name: str

    def __init__(self) -> None:
        self.hash = FIRST_HASH

    def decide(self, request: GateRequest, view: GateView, now_s: float) -> Decision:
        """Take or refuse a request that has just come. Whoever is taken is sure to `leave` later."""
        decision = self._judge(request, view, now_s)
        self.hash = decision_hash(self.hash, request, decision)
        return decision

    @abstractmethod
    def _judge(self, request: GateRequest, view: GateView, now_s: float) -> Decision: ...

    def started(self, request: GateRequest, now_s: float) -> None:  # noqa: B027  most policies need not know
        """It has gone into the engine."""

    def first_token(self, request: GateRequest, now_s: float) -> None:  # noqa: B027
        """Its first token came; never told of a whole answer."""

    def left(self, request: GateRequest, output_tokens: float, now_s: float, *, started: bool, finished: bool) -> None:  # noqa: B027
        """It is gone: `finished` by the engine, or cancelled while it ran, or (not `started`) while it waited."""

    def save(self, now_s: float) -> dict[str, Any]:
        """All that later decisions depend on, as JSON values; times are kept as ages, so that another clock can go on."""
        return {"name": self.name, "hash": self.hash} | self._save(now_s)

    def load(self, saved: Mapping[str, Any], now_s: float) -> None:
        """Take up where `save` was called. Raises ValueError when that was another policy."""
        if saved["name"] != self.name:
            raise ValueError(f"saved state is of admission policy {saved['name']!r}, this is {self.name!r}")
        self.hash = saved["hash"]
        self._load(saved, now_s)

    def _save(self, now_s: float) -> dict[str, Any]:
        return {}

    def _load(self, saved: Mapping[str, Any], now_s: float) -> None:  # noqa: B027
        pass


class Open(Admission):
    """Everybody is taken."""

    name = "open"

    def _judge(self, request: GateRequest, view: GateView, now_s: float) -> Decision:
        return taken(request, view)


def taken(request: GateRequest, view: GateView) -> Admit | Queue:
    """At once where seats are free and nobody waits for them; in its turn elsewhere."""
    wanted = min(request.choices, view.seats)
    free = view.waiting_sequences == 0 and view.running_sequences + wanted <= view.seats
    return Admit() if free else Queue()
