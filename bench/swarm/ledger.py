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


@dataclass(slots=True)
class Report:
    """All that a process has counted since the run's start: a report that is late or lost makes no difference."""

    run: int
    done: bool
    tallies: dict[str, Tally]

    def as_json(self) -> dict[str, Any]:
        tallies = {tenant: tally.as_json() for tenant, tally in self.tallies.items()}
        return {"run": self.run, "done": self.done, "tallies": tallies}

    @classmethod
    def of_json(cls, made: dict[str, Any]) -> Self:
        tallies = {tenant: Tally.of_json(tally) for tenant, tally in made["tallies"].items()}
        return cls(int(made["run"]), bool(made["done"]), tallies)


@dataclass(slots=True)
class Ledger:
    """reports: process -> its last report of this run."""

    run: int = 0
    reports: dict[str, Report] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    _seen: deque[tuple[float, dict[str, Tally]]] = field(default_factory=deque)

    def begin(self) -> None:
        self.run += 1
        self.reports.clear()
        self.history.clear()
        self._seen.clear()

    def take(self, process: str, report: Report) -> None:
        """A report of an earlier run is dropped."""
        if report.run == self.run:
            self.reports[process] = report

    def done(self, processes: Iterable[str]) -> bool:
        return all(process in self.reports and self.reports[process].done for process in processes)

    def tenants(self) -> dict[str, Tally]:
        """Each tenant's, of all processes."""
        names = sorted({tenant for report in self.reports.values() for tenant in report.tallies})
        return {
            name: together(report.tallies[name] for report in self.reports.values() if name in report.tallies)
            for name in names
        }

    def lateness_p99_ms(self) -> dict[str, float]:
        """Of each process: one that was late measured itself, however punctual the others were."""
        return {name: together(report.tallies.values()).lateness_p99_ms for name, report in self.reports.items()}

    def summary(self) -> dict[str, Any]:
        tenants = self.tenants()
        whole = together(tenants.values())
        late_ms = self.lateness_p99_ms()
        worst_ms = max(late_ms.values(), default=0.0)
        return whole.summary(whole.ended_s) | {
            "lateness_p99_ms": worst_ms,
            "client_was_bottleneck": worst_ms > MAX_LATENESS_MS,
            "tenants": {name: tally.summary(whole.ended_s) for name, tally in tenants.items()},
            "workers": {name: {"lateness_p99_ms": value} for name, value in late_ms.items()},
        }

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


def late_warning(lateness_ms: dict[str, float]) -> str | None:
    """What is to be said of processes that sent too late."""
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
