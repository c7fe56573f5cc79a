"""What a result is judged by: latencies as clients see them, and who met their deadlines.

A request that was cancelled met nothing; so does one that never came because its program was given up. TPOT is a mean
over the tokens after the first, and one-token answers have none.
"""

from dataclasses import dataclass

import numpy as np

from burrstone.batching.sim.run import Result
from burrstone.batching.sim.workload_types import Floats, Workload


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; nan where nothing was measured."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. Attainment is the share of all offered requests that met every deadline of theirs."""

    ttft: Percentiles
    tpot: Percentiles
    e2e: Percentiles
    queue: Percentiles  # from arrival to first admission
    attainment: float
    goodput_per_s: float  # requests that met every deadline, a second of makespan
    requests_per_s: float
    output_tokens_per_s: float
    hit_share: float  # of prompt tokens, found in the prefix cache


def ttft_s(result: Result) -> Floats:
    """From arrival to the first token, nan where there was none."""
    return _span(result.arrival_s, result.first_token_s)


def e2e_s(result: Result) -> Floats:
    """From arrival to the last token; nan for who did not finish."""
    return np.where(result.finished, _span(result.arrival_s, result.ended_s), np.nan)


def tpot_s(result: Result) -> Floats:
    """Per output token after the first, on average over the request; nan for who did not finish or had one token."""
    gaps = np.where(result.output_tokens > 1, result.output_tokens - 1, 1)
    spans = _span(result.first_token_s, result.ended_s) / gaps
    return np.where(result.finished & (result.output_tokens > 1), spans, np.nan)


def met(workload: Workload, result: Result) -> np.ndarray:
    """Which requests finished and met all their deadlines: [requests] bool."""
    late = (ttft_s(result) > workload.ttft_s) | (tpot_s(result) > workload.tpot_s) | (e2e_s(result) > workload.e2e_s)
    return result.finished & ~late


def percentiles(values_s: Floats) -> Percentiles:
    """Of all that are not nan."""
    known = values_s[~np.isnan(values_s)]
    if len(known) == 0:
        return Percentiles(np.nan, np.nan, np.nan, np.nan)
    p50, p90, p99 = np.percentile(known, [50, 90, 99])
    return Percentiles(float(known.mean()), float(p50), float(p90), float(p99))


def summarize(workload: Workload, result: Result) -> Summary:
    """The whole run; for one tenant's part use the functions above with a mask."""
    good = met(workload, result)
    span_s = result.makespan_s if result.makespan_s > 0 else np.nan
    finished_tokens = workload.input_tokens[result.finished].sum()
    return Summary(
        ttft=percentiles(ttft_s(result)),
        tpot=percentiles(tpot_s(result)),
        e2e=percentiles(e2e_s(result)),
        queue=percentiles(_span(result.arrival_s, result.scheduled_s)),
        attainment=float(good.mean()) if len(good) else np.nan,
        goodput_per_s=float(good.sum() / span_s),
        requests_per_s=float(result.finished.sum() / span_s),
        output_tokens_per_s=float(result.output_tokens.sum() / span_s),
        hit_share=float(result.cached_tokens[result.finished].sum() / finished_tokens) if finished_tokens else 0.0,
    )


def _span(start_s: Floats, end_s: Floats) -> Floats:
    return np.where((start_s >= 0) & (end_s >= 0), end_s - start_s, np.nan)
