"""The figures of a run without its records: counts and histograms of each tenant, which merge. Definitions are `Record`'s, names
those of `summarize`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from burrstone.bench.load.record import Record
from burrstone.bench.load.summary import MAX_LATENESS_MS, PERCENTILES
from burrstone.bench.swarm.histogram import Histogram

FIGURES = ("ttft", "itl", "tpot", "e2el")
_COUNTS = ("offered", "completed", "good", "prompt_tokens", "output_tokens")
_MS = 1000.0


@dataclass(slots=True)
class Tally:
    """ended_s: when the last request ended, from the run's start."""

    offered: int = 0
    completed: int = 0
    good: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    ended_s: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in FIGURES})
    late: Histogram = field(default_factory=Histogram)

    def add(self, record: Record) -> None:
        self.offered += 1
        self.good += record.good
        if not math.isnan(record.sent_s):
            self.late.add(record.late_s)
            self.ended_s = max(self.ended_s, record.ended_s)
        if record.error is not None:
            self.errors[record.error] = self.errors.get(record.error, 0) + 1
            return
        self.completed += 1
        self.prompt_tokens += record.prompt_tokens or 0
        self.output_tokens += record.output_tokens
        self.figures["ttft"].add(record.ttft_s)
        self.figures["e2el"].add(record.e2e_s)
        for gap_s in record.gaps_s:
            self.figures["itl"].add(gap_s)
        if (tpot_s := record.tpot_s) is not None:
            self.figures["tpot"].add(tpot_s)

    def merge(self, other: Self) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ended_s = max(self.ended_s, other.ended_s)
        for error, count in other.errors.items():
            self.errors[error] = self.errors.get(error, 0) + count
        for name, figure in self.figures.items():
            figure.merge(other.figures[name])
        self.late.merge(other.late)

    @property
    def lateness_p99_ms(self) -> float:
        return _MS * (self.late.quantile(0.99) or 0.0)

    def summary(self, duration_s: float) -> dict[str, Any]:
        """Figures without a sample are None."""
        span_s = duration_s or math.inf
        return {
            "duration": duration_s,
            "offered": self.offered,
            "completed": self.completed,
            "failed": self.offered - self.completed,
            "errors": dict(sorted(self.errors.items(), key=lambda item: -item[1])),
            "total_input_tokens": self.prompt_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.completed / span_s,
            "output_throughput": self.output_tokens / span_s,
            "total_token_throughput": (self.prompt_tokens + self.output_tokens) / span_s,
            "goodput_rps": self.good / span_s,
            "slo_attainment": self.good / self.offered if self.offered else None,
            "client_was_bottleneck": self.lateness_p99_ms > MAX_LATENESS_MS,
            "lateness_p99_ms": self.lateness_p99_ms,
        } | {key: value for name in FIGURES for key, value in _spread(name, self.figures[name]).items()}

    def as_json(self) -> dict[str, Any]:
        figures = {name: figure.as_json() for name, figure in self.figures.items()}
        counts = {name: getattr(self, name) for name in (*_COUNTS, "ended_s", "errors")}
        return counts | {"figures": figures, "late": self.late.as_json()}

    @classmethod
    def of_json(cls, made: dict[str, Any]) -> Self:
        figures = {name: Histogram.of_json(figure) for name, figure in made["figures"].items()}
        return cls(**made | {"figures": figures, "late": Histogram.of_json(made["late"])})


def together(tallies: Iterable[Tally]) -> Tally:
    """All of them as one, which shares nothing with them."""
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    return whole


def _spread(name: str, figure: Histogram) -> dict[str, float | None]:
    values = {f"mean_{name}_ms": figure.mean, f"median_{name}_ms": figure.quantile(0.5)}
    values |= {f"p{percentile}_{name}_ms": figure.quantile(percentile / 100) for percentile in PERCENTILES}
    return {key: None if value is None else _MS * value for key, value in values.items()}
