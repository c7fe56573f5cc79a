"""What all processes of a run have counted, as one: for the web page while it goes on, for the summary at its end."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from burrstone.bench.load.summary import MAX_LATENESS_MS
from burrstone.bench.swarm.histogram import Histogram
from burrstone.bench.swarm.tally import Tally, together

# The curves show the last ten seconds: workers report every three.
_WINDOW_S = 10.0
_MOST_POINTS = 2000
_MS = 1000.0
_LOST = "its worker was lost"


@dataclass(slots=True)
class Report:
    """All that a process has counted since the run's start: a report that is late or lost makes no difference.

    holds: tenant -> how many requests are its part, booked or not: all of an open loop's share.
    """

    run: int
    done: bool
    tallies: dict[str, Tally]
    holds: dict[str, int] = field(default_factory=dict)

    def missing(self) -> dict[str, Tally]:
        """What it holds and has not booked, as failed."""
        booked = {tenant: tally.offered for tenant, tally in self.tallies.items()}
        left = {tenant: count - booked.get(tenant, 0) for tenant, count in self.holds.items()}
        return {tenant: Tally(offered=count, errors={_LOST: count}) for tenant, count in left.items() if count > 0}

    def as_json(self) -> dict[str, Any]:
        tallies = {tenant: tally.as_json() for tenant, tally in self.tallies.items()}
        return {"run": self.run, "done": self.done, "tallies": tallies, "holds": dict(self.holds)}

    @classmethod
    def of_json(cls, made: dict[str, Any]) -> Self:
        tallies = {tenant: Tally.of_json(tally) for tenant, tally in made["tallies"].items()}
        return cls(int(made["run"]), bool(made["done"]), tallies, made["holds"])


@dataclass(slots=True)
class Ledger:
    """reports: process -> its last report of this run. lost: those that left before they were done, of which there is a
    report too. error: why nothing can be offered."""

    run: int = 0
    reports: dict[str, Report] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    error: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    _seen: deque[tuple[float, dict[str, Tally]]] = field(default_factory=deque)

    def begin(self) -> None:
        self.run += 1
        self.error = None
        self.reports.clear()
        self.lost.clear()
        self.history.clear()
        self._seen.clear()

    def take(self, process: str, report: Report) -> None:
        """A report of an earlier run is dropped."""
        if report.run == self.run:
            self.reports[process] = report

    def done(self, processes: Iterable[str]) -> bool:
        return all(process in self.reports and self.reports[process].done for process in processes)

    def tenants(self) -> dict[str, Tally]:
        """Each tenant's, of all processes. What a lost one held was offered too, and is as bad as what failed."""
        parts = [report.tallies for report in self.reports.values()]
        parts += [self.reports[name].missing() for name in self.lost]
        names = sorted({tenant for part in parts for tenant in part})
        return {name: together(part[name] for part in parts if name in part) for name in names}

    def lateness_p99_ms(self) -> dict[str, float]:
        """Of each process: one that was late measured itself, however punctual the others were."""
        return {name: together(report.tallies.values()).lateness_p99_ms for name, report in self.reports.items()}

    def summary(self) -> dict[str, Any]:
        tenants = self.tenants()
        whole = together(tenants.values())
        late_ms = self.lateness_p99_ms()
        worst_ms = max(late_ms.values(), default=0.0)
        warning, _ = self._verdict(late_ms)
        return whole.summary(whole.ended_s) | {
            "lateness_p99_ms": worst_ms,
            "client_was_bottleneck": worst_ms > MAX_LATENESS_MS,
            "tenants": {name: tally.summary(whole.ended_s) for name, tally in tenants.items()},
            "workers": {name: {"lateness_p99_ms": ms, "lost": name in self.lost} for name, ms in late_ms.items()},
            "warning": warning,
        }

    def verdict(self) -> tuple[str | None, int]:
        """What is to be said of the run, and its exit code."""
        return self._verdict(self.lateness_p99_ms())

    def _verdict(self, late_ms: dict[str, float]) -> tuple[str | None, int]:
        if self.error is not None:
            return self.error, 2
        told = [words for words in (_lost_warning(self.lost), _late_warning(late_ms)) if words]
        return ("; ".join(told), 1) if told else (None, 0)

    def sample(self, at_s: float) -> None:
        """Add a point to the curves: the figures of the last seconds, by tenant."""
        tenants = self.tenants()
        self._seen.append((at_s, tenants))
        while len(self._seen) > 2 and self._seen[1][0] <= at_s - _WINDOW_S:
            self._seen.popleft()
        before_s, before = self._seen[0]
        if at_s > before_s:
            points = {
                name: _point(tally, before.get(name, Tally()), at_s - before_s) for name, tally in tenants.items()
            }
            self.history.append({"at_s": round(at_s, 1), "tenants": points})
            del self.history[:-_MOST_POINTS]


def _lost_warning(lost: set[str]) -> str | None:
    if not lost:
        return None
    return f"lost before the end, so that what was left of its share counts as failed: {', '.join(sorted(lost))}"


def _late_warning(lateness_ms: dict[str, float]) -> str | None:
    late = [f"{name} up to {value:.1f} ms" for name, value in lateness_ms.items() if value > MAX_LATENESS_MS]
    if not late:
        return None
    return (
        f"requests were sent late (p99; {MAX_LATENESS_MS:g} ms is allowed): {', '.join(late)}. This measured the client: lower "
        "the rate, use more processes, or run it on cores of its own"
    )


def _point(tally: Tally, before: Tally, span_s: float) -> dict[str, float | None]:
    return {
        "ttft_p95_ms": _p95_ms(tally.figures["ttft"].since(before.figures["ttft"])),
        "itl_p95_ms": _p95_ms(tally.figures["itl"].since(before.figures["itl"])),
        "tokens_per_s": (tally.output_tokens - before.output_tokens) / span_s,
        "goodput_rps": (tally.good - before.good) / span_s,
    }


def _p95_ms(figure: Histogram) -> float | None:
    value_s = figure.quantile(0.95)
    return None if value_s is None else _MS * value_s
