"""The figures of a run. Names are those of `vllm bench serve` where it has the figure, so that its plotting reads ours.

Goodput counts what met all of its SLOs over all that was *offered*: failures, refusals and timeouts are bad, not absent.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from burrstone.bench.load.record import Record

PERCENTILES = (50, 90, 95, 99)
# A run in which the client itself was so late has measured the client.
MAX_LATENESS_MS = 5.0
_MS = 1000.0


def summarize(records: Sequence[Record], duration_s: float, lag_p99_ms: float = 0.0) -> dict[str, Any]:
    """duration_s: from the first intended sending to the last end. lag_p99_ms: the client's own, beside its lateness.
    Figures without a sample are None."""
    done = [record for record in records if record.ok]
    good = sum(record.good for record in records)
    output_tokens = sum(record.output_tokens for record in done)
    prompt_tokens = sum(record.prompt_tokens or 0 for record in done)
    cached = [record.cached_tokens for record in done if record.cached_tokens is not None]
    pieces = sum(len(record.pieces_s) for record in done)
    errors: dict[str, int] = {}
    for record in records:
        if record.error is not None:
            errors[record.error] = errors.get(record.error, 0) + 1
    return {
        "duration": duration_s,
        "offered": len(records),
        "completed": len(done),
        "failed": len(records) - len(done),
        "errors": dict(sorted(errors.items(), key=lambda item: -item[1])),
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(done) / duration_s,
        "output_throughput": output_tokens / duration_s,
        "total_token_throughput": (prompt_tokens + output_tokens) / duration_s,
        "goodput_rps": good / duration_s,
        "request_goodput": good / duration_s,
        "slo_attainment": good / len(records) if records else None,
        "cached_token_share": sum(cached) / prompt_tokens if cached and prompt_tokens else None,
        "tokens_per_piece": output_tokens / pieces if pieces else None,
        "client_was_bottleneck": max(lateness_p99_ms(records), lag_p99_ms) > MAX_LATENESS_MS,
        "lateness_p99_ms": lateness_p99_ms(records),
        "client_lag_p99_ms": lag_p99_ms,
        **_spread("ttft", [record.ttft_s for record in done]),
        **_spread("ttft_sent", [record.ttft_sent_s for record in done]),
        **_spread("tpot", [tpot_s for record in done if (tpot_s := record.tpot_s) is not None]),
        **_spread("itl", [gap_s for record in done for gap_s in record.gaps_s]),
        **_spread("e2el", [record.e2e_s for record in done]),
    }


def parts(records: Sequence[Record], duration_s: float) -> dict[str, Any]:
    """What a result has beside its summary: each tenant's where there are several, and a list of each figure."""
    several = len({record.tenant for record in records}) > 1
    return {"tenants": by_tenant(records, duration_s) if several else {}, **detailed(records)}


def by_tenant(records: Sequence[Record], duration_s: float) -> dict[str, dict[str, Any]]:
    """The same for each tenant alone."""
    tenants = sorted({record.tenant for record in records})
    return {
        tenant: summarize([record for record in records if record.tenant == tenant], duration_s) for tenant in tenants
    }


def duration_s(records: Sequence[Record]) -> float:
    """From the first moment of the schedule to the last end."""
    return max(record.ended_s for record in records if not math.isnan(record.ended_s))


def detailed(records: Sequence[Record]) -> dict[str, Any]:
    """The lists that vLLM's own result file has, one entry a request, and when each was to be sent."""
    return {
        "intended_times": [record.intended_s for record in records],
        "input_lens": [record.prompt_tokens or 0 for record in records],
        "output_lens": [record.output_tokens for record in records],
        "ttfts": [record.ttft_sent_s if record.ok else 0.0 for record in records],
        "itls": [record.gaps_s if record.ok else [] for record in records],
        "latencies": [record.pieces_s[-1] - record.sent_s if record.ok else 0.0 for record in records],
        "start_times": [record.sent_s if record.ok else record.intended_s for record in records],
        "errors": [record.error or "" for record in records],
    }


def lateness_p99_ms(records: Sequence[Record]) -> float:
    late_s = [record.late_s for record in records if not math.isnan(record.late_s)]
    return _MS * float(np.percentile(late_s, 99)) if late_s else 0.0


def _spread(name: str, values_s: Sequence[float]) -> dict[str, float | None]:
    """mean_, median_, std_ and percentiles of a figure, in ms."""
    values_ms = _MS * np.array(values_s, dtype=np.float64)
    names = (f"mean_{name}_ms", f"median_{name}_ms", f"std_{name}_ms", *(f"p{p}_{name}_ms" for p in PERCENTILES))
    if len(values_ms) == 0:
        return dict.fromkeys(names, None)
    found = (values_ms.mean(), np.median(values_ms), values_ms.std(), *np.percentile(values_ms, PERCENTILES))
    return dict(zip(names, map(float, found), strict=True))
