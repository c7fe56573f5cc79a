"""Under pressure everybody gets less before anybody gets nothing: shorter answers in stages, low priority first."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burrstone.batching.admission.decision import Decision, Degrade, GateRequest, GateView, Reject
from burrstone.batching.admission.policy import Admission, taken
from burrstone.batching.admission.service_rate import ServiceRate
from burrstone.batching.errors import UsageError

REASON = "brownout"
_UNKNOWN_SEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Begins at `enter` sequences, running and waiting, for each seat; ends at `leave`. max_tokens None: refuse."""

    enter: float
    leave: float
    max_tokens: int | None


STAGES = (Stage(1.25, 0.9, 512), Stage(1.75, 1.25, 256), Stage(2.5, 1.75, 128), Stage(4.0, 2.5, None))


class Brownout(Admission):
    """The lowest priority class feels the stage; each class above it feels one stage less.

    A stage that was entered holds for `hold_s` after the pressure last justified it, and until the pressure is down to
    its `leave`: the answers of one conversation do not flicker between two lengths.
    """

    name = "brownout"

    def __init__(self, priorities: Sequence[int], stages: Sequence[Stage] = STAGES, hold_s: float = 5.0) -> None:
        super().__init__()
        _check(stages)
        self._worst_first = sorted(set(priorities), reverse=True)
        self._stages = tuple(stages)
        self._hold_s = hold_s
        self._rate = ServiceRate()
        self._started: dict[int, float] = {}
        self.level = 0  # stages that hold now
        self._justified_s = 0.0  # when the pressure was last high enough to enter the level

    def _judge(self, request: GateRequest, view: GateView, now_s: float) -> Decision:
        wanted = min(request.choices, view.seats)
        pressure = (view.running_sequences + view.waiting_sequences + wanted) / view.seats
        self._move(pressure, now_s)
        felt = self.level - self._rank(request.priority)
        if felt <= 0:
            return taken(request, view)
        stage = self._stages[felt - 1]
        if stage.max_tokens is None:
            return Reject(self._retry_after_s(pressure, stage, view, now_s), REASON)
        return Degrade(stage.max_tokens) if request.max_tokens > stage.max_tokens else taken(request, view)

    def _move(self, pressure: float, now_s: float) -> None:
        justified = sum(pressure >= stage.enter for stage in self._stages)
        if justified >= self.level:
            self.level = justified
            self._justified_s = now_s
        elif now_s >= self._justified_s + self._hold_s:
            held = sum(pressure > stage.leave for stage in self._stages)
            self.level = min(self.level, max(justified, held))

    def _rank(self, priority: int) -> int:
        """Classes below this one."""
        return sum(other > priority for other in self._worst_first)

    def _retry_after_s(self, pressure: float, stage: Stage, view: GateView, now_s: float) -> float:
        """Until enough has finished that the stage ends, and it has held long enough."""
        above = int((pressure - stage.leave) * view.seats) + 1 if pressure > stage.leave else 0
        drained_s = above * (self._rate.seat_s or _UNKNOWN_SEAT_S) / view.seats
        return max(drained_s, self._justified_s + self._hold_s - now_s)

    def started(self, request: GateRequest, now_s: float) -> None:
        self._started[request.seq] = now_s

    def left(self, request: GateRequest, output_tokens: float, now_s: float, *, started: bool, finished: bool) -> None:
        start_s = self._started.pop(request.seq, None)
        if start_s is not None and finished:
            self._rate.observe_seat(now_s - start_s)

    def _save(self, now_s: float) -> dict[str, Any]:
        return {
            "rate": self._rate.save(),
            "started": [[seq, now_s - start_s] for seq, start_s in self._started.items()],
            "level": self.level,
            "justified": now_s - self._justified_s,
        }

    def _load(self, saved: Mapping[str, Any], now_s: float) -> None:
        self._rate.load(saved["rate"])
        self._started = {seq: now_s - age_s for seq, age_s in saved["started"]}
        self.level = saved["level"]
        self._justified_s = now_s - saved["justified"]


def _check(stages: Sequence[Stage]) -> None:
    rising = all(a.enter < b.enter and a.leave <= b.leave for a, b in itertools.pairwise(stages))
    if not stages or not rising or any(not 0 < stage.leave < stage.enter for stage in stages):
        raise UsageError("brownout stages: each enters above the one before, and leaves below where it entered")
