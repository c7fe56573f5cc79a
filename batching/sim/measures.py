"""What a run means to those who asked: latencies, attained SLOs, goodput, and how evenly tenants were served.

TTFT and E2E count from the request's arrival. TPOT is (E2E - TTFT) / (output tokens - 1), and an answer of one token has
none. A request is good if it finished within all its SLOs; what failed, was refused or left is not. Attainment is
good / offered requests, goodput good requests per second.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from burrstone.batching.sim.traffic.workload_types import Floats, Ints, Workload

Mask = NDArray[np.bool_]
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Latencies:
    """By request of the workload. Infinite where the token never came; TPOT is NaN for answers of one token."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    good: Mask


@dataclass(frozen=True, slots=True)
class Summary:
    """Some requests in figures. Quantiles are QUANTILES; infinite where too few were answered."""

    requests: int
    attainment: float
    goodput_per_s: float
    output_tokens_per_s: float
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    e2e_s: tuple[float, ...]


def latencies(
    workload: Workload, arrival_s: Floats, first_token_s: Floats, ended_s: Floats, finished: Mask
) -> Latencies:
    """All arrays [requests], in the workload's order. `arrival_s`: when it came, which for a program's next call is not
    the workload's; `finished`: whether it had its last token."""
    first = np.where((first_token_s >= 0) & np.isfinite(first_token_s), first_token_s, np.inf)
    ttft_s = first - arrival_s
    e2e_s = np.where(finished, ended_s, np.inf) - arrival_s
    gaps = workload.output_tokens - 1
    with np.errstate(invalid="ignore"):
        tpot_s = np.where(gaps > 0, np.where(finished, (e2e_s - ttft_s) / np.maximum(gaps, 1), np.inf), np.nan)
    in_time = (ttft_s <= workload.ttft_s) & (e2e_s <= workload.e2e_s) & ((gaps == 0) | (tpot_s <= workload.tpot_s))
    return Latencies(ttft_s, tpot_s, e2e_s, finished & in_time)


def summarise(workload: Workload, found: Latencies, duration_s: float, rows: Mask | None = None) -> Summary:
    """The figures of these requests, all of them if none are named; rates are over duration_s."""
    rows = np.ones(len(workload), np.bool_) if rows is None else rows
    size = int(rows.sum())
    good = int(found.good[rows].sum())
    answered = rows & np.isfinite(found.e2e_s)
    return Summary(
        requests=size,
        attainment=good / size if size else 1.0,
        goodput_per_s=good / duration_s,
        output_tokens_per_s=float(workload.output_tokens[answered].sum()) / duration_s,
        ttft_s=quantiles(found.ttft_s[rows]),
        tpot_s=quantiles(found.tpot_s[rows]),
        e2e_s=quantiles(found.e2e_s[rows]),
    )


def program_seconds(workload: Workload, arrival_s: Floats, found: Latencies) -> Floats:
    """How long each agent program took, from its first call to its last token; infinite where a call never finished."""
    rows = np.flatnonzero(workload.program >= 0)
    programs, place = np.unique(workload.program[rows], return_inverse=True)
    begins_s, ends_s = np.full(len(programs), np.inf), np.full(len(programs), -np.inf)
    np.minimum.at(begins_s, place, arrival_s[rows])
    np.maximum.at(ends_s, place, arrival_s[rows] + found.e2e_s[rows])
    return ends_s - begins_s


def quantiles(values: Floats) -> tuple[float, ...]:
    """QUANTILES of these, by the nearest value above; NaN are left out, and all are NaN where nothing is left."""
    known = np.sort(values[~np.isnan(values)])
    if len(known) == 0:
        return (np.nan,) * len(QUANTILES)
    return tuple(float(known[min(int(np.ceil(share * len(known))) - 1, len(known) - 1)]) for share in QUANTILES)


def jain(values: Floats) -> float:
    """Jain's index of these shares: 1 if all are equal, 1 / n if one has everything."""
    squares = float(np.sum(values**2)) * len(values)
    return float(np.sum(values)) ** 2 / squares if squares else 1.0


def tokens_served(workload: Workload, found: Latencies, arrival_s: Floats, until_s: float) -> Floats:
    """Tokens of each request served by then: the prompt with the first token, outputs evenly from there to the last."""
    first, last = arrival_s + found.ttft_s, arrival_s + found.e2e_s
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(last > first, (until_s - first) / (last - first), 1.0)
    outputs = workload.output_tokens * np.clip(np.nan_to_num(share), 0.0, 1.0)
    return np.where(first <= until_s, workload.input_tokens + outputs, 0.0)


def fair_shares(asked: Floats, weight: Floats, served: float) -> Floats:
    """Max-min fair division of `served` tokens: nobody gets more than was asked, the rest goes by weight."""
    shares = np.zeros(len(asked))
    left, open_ = served, asked > 0
    while left > 1e-9 * max(served, 1.0) and open_.any():
        level = left / weight[open_].sum()
        given = np.where(open_, np.minimum(asked - shares, level * weight), 0.0)
        shares += given
        left -= float(given.sum())
        open_ = asked - shares > 1e-9 * np.maximum(asked, 1.0)
    return shares


def fairness(served: Floats, asked: Floats, tenant: Ints, weight: Floats) -> tuple[float, Floats]:
    """Jain's index of service relative to the max-min fair share, more than it counting as all of it; and tokens served
    by tenant. served, asked: [requests] tokens in the same time; weight: [tenants]."""
    by_tenant = np.bincount(tenant, weights=served, minlength=len(weight)).astype(np.float64)
    wanted = np.bincount(tenant, weights=asked, minlength=len(weight)).astype(np.float64)
    shares = fair_shares(wanted, weight, float(by_tenant.sum()))
    there = shares > 0
    return jain(np.minimum(by_tenant[there] / shares[there], 1.0)), by_tenant


# Student's t, 97.5 %, by degrees of freedom from 1.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def interval(values: Floats) -> tuple[float, float]:
    """Mean and the half width of its 95 % interval over seeds; no width (NaN) for fewer than three."""
    mean = float(np.mean(values))
    if len(values) < 3 or not np.isfinite(mean):
        return mean, np.nan
    degrees = len(values) - 1
    t = _T[degrees - 1] if degrees <= len(_T) else 2.0
    return mean, t * float(np.std(values, ddof=1)) / float(np.sqrt(len(values)))
