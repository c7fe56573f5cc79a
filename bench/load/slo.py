"""`burrstone bench slo`: the highest rate that a server sustains within its SLOs."""

import argparse
import asyncio
import sys
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from burrstone.batching.errors import UsageError
from burrstone.bench.load.capacity import Capacity, find_capacity, lower_bound
from burrstone.bench.load.flags import (
    Plan,
    add_load_flags,
    command_of,
    offer,
    offered_by,
    tell,
    terms_of,
    traffic_of,
    url_of,
)
from burrstone.bench.load.summary import MAX_LATENESS_MS, lateness_p99_ms
from burrstone.bench.machine import machine


def add_parser(kinds: Any) -> None:
    slo = kinds.add_parser(
        "slo",
        help="find the highest rate that meets the SLOs",
        description=(
            "Offer the workload at one rate after the other (doubled or halved until the capacity is bracketed, then the "
            "bracket halved) and find the highest at which the lower end of the 95 %% interval of the attainment is at "
            "least --attainment. Exit code 1 when no rate was sustained, or the client itself was the bottleneck."
        ),
    )
    add_load_flags(slo, amount=False)
    slo.add_argument("--start-rate", type=float, default=2.0, metavar="R", help="of the first run [%(default)g]")
    slo.add_argument("--attainment", type=float, default=0.9, metavar="S", help="share within its SLOs [%(default)g]")
    slo.add_argument("--within", type=float, default=0.05, metavar="S", help="how exactly, relatively [%(default)g]")
    slo.add_argument("--most-runs", type=int, default=10, metavar="N", help="[%(default)s]")
    slo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.attainment < 1 or not arguments.within > 0 or arguments.most_runs < 1:
        raise UsageError("--attainment lies between 0 and 1, --within is above 0 and --most-runs at least 1")
    traffic = traffic_of(arguments)
    terms, url = terms_of(arguments, traffic.tenant_names), url_of(arguments)
    lateness_ms: list[float] = []

    def measure(rate: float) -> tuple[int, int]:
        # Other texts in each run: what the last one left in the server's cache is not this one's.
        seed = arguments.seed + 1 + len(lateness_ms)
        plan = Plan(offered_by(traffic, arguments, rate), terms, url, arguments.grpc, seed=seed)
        size = len(plan.workload)
        if lower_bound(size, size) < arguments.attainment:
            raise UsageError(
                f"{size} requests at {rate:.3g} a second could not show an attainment of {arguments.attainment:g} even if all "
                "were good; make --duration-s longer"
            )
        with tqdm(total=size, desc=f"{rate:.3g} requests/s", file=sys.stderr, disable=None) as bar:
            records = asyncio.run(offer(plan, lambda _: bar.update()))
        lateness_ms.append(lateness_p99_ms(records))
        return sum(record.good for record in records), len(records)

    found = find_capacity(
        measure,
        arguments.start_rate,
        attainment=arguments.attainment,
        within=arguments.within,
        most_runs=arguments.most_runs,
    )
    late = max(lateness_ms) > MAX_LATENESS_MS
    result = {
        "sustained_rps": found.sustained,
        "failed_rps": found.failed if found.failed < float("inf") else None,
        "attainment": arguments.attainment,
        "tried": [asdict(tried) for tried in found.tried],
        "lateness_p99_ms": max(lateness_ms),
        "client_was_bottleneck": late,
        "setting": machine()
        | {"workload": arguments.workload, "url": url, "duration_s": arguments.duration_s}
        | {"command": command_of(arguments)},
    }
    tell(result, _table(found), arguments.json)
    return 1 if late or not found.sustained else 0


def _table(found: Capacity) -> str:
    lines = [
        f"{tried.rate:8.3f} requests/s: {tried.good:5} of {tried.offered:5} good, {'' if tried.sustained else 'not '}sustained"
        for tried in found.tried
    ]
    return "\n".join([*lines, f"capacity: {found.sustained:.3f} requests/s, less than {found.failed:.3f}"])
