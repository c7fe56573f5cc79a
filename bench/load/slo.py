"""`burrstone bench slo`: the highest rate that a server sustains within its SLOs."""

import argparse
import math
import sys
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from burrstone.batching.errors import UsageError
from burrstone.bench.load.capacity import CannotShow, Capacity, find_capacity, lower_bound
from burrstone.bench.load.flags import (
    add_load_flags,
    command_of,
    offered_by,
    tell,
    terms_of,
    text_seed,
    traffic_of,
    url_of,
    without_password,
)
from burrstone.bench.load.offer import Offered, Plan, offer_whole
from burrstone.bench.load.summary import MAX_LATENESS_MS, lateness_p99_ms
from burrstone.bench.machine import machine


def add_parser(kinds: Any) -> None:
    slo = kinds.add_parser(
        "slo",
        help="find the highest rate that meets the SLOs",
        description=(
            "Offer the workload at one rate after the other (in ever longer steps until the capacity is bracketed, then the "
            "bracket halved) and find the highest at which the lower end of the 95 % interval of the attainment is at "
            "least --attainment. Exit code 1 when the capacity was not found as exactly as --within asks, or the client "
            "itself was the bottleneck."
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
    runs: list[Offered] = []

    def measure(rate: float) -> tuple[int, int]:
        # Other texts in each run: what the last one left in the server's cache is not this one's.
        seed = text_seed(arguments) + len(runs)
        plan = Plan(offered_by(traffic, arguments, rate), terms, url, arguments.grpc, seed=seed)
        size = len(plan.workload)
        if lower_bound(size, size) < arguments.attainment:
            raise CannotShow(
                f"{size} requests at {rate:.3g} a second could not show an attainment of {arguments.attainment:g} even if "
                f"all were good; make {'--num-requests larger' if arguments.num_requests else '--duration-s longer'}"
            )
        with tqdm(total=size, desc=f"{rate:.3g} requests/s", file=sys.stderr, disable=None) as bar:
            runs.append(offer_whole(plan, lambda _: bar.update()))
        records = runs[-1].records
        return sum(record.good for record in records), len(records)

    found = find_capacity(
        measure,
        arguments.start_rate,
        attainment=arguments.attainment,
        within=arguments.within,
        most_runs=arguments.most_runs,
    )
    if not runs:
        raise UsageError(found.ended or "nothing was tried")
    lateness_ms = max(lateness_p99_ms(run.records) for run in runs)
    late, exact = lateness_ms > MAX_LATENESS_MS, found.spread <= arguments.within
    result = {
        "sustained_rps": found.sustained,
        "failed_rps": found.failed if found.failed < math.inf else None,
        "spread": found.spread if found.spread < math.inf else None,
        "exact": exact,
        "ended": found.ended,
        "attainment": arguments.attainment,
        "tried": [asdict(tried) for tried in found.tried],
        "lateness_p99_ms": lateness_ms,
        "client_was_bottleneck": late,
        "setting": machine()
        | {"workload": arguments.workload, "url": without_password(url), "duration_s": arguments.duration_s}
        | {"seed": arguments.seed, "text_seed": arguments.text_seed, "command": command_of(arguments)},
    }
    tell(result, _table(found, arguments.within), arguments.json)
    return 1 if late or not exact else 0


def _table(found: Capacity, within: float) -> str:
    lines = [
        f"{tried.rate:8.3f} requests/s: {tried.good:5} of {tried.offered:5} good, {'' if tried.sustained else 'not '}sustained"
        for tried in found.tried
    ]
    above = "" if math.isinf(found.failed) else f"less than {found.failed:.3f}"
    least = f"{found.sustained:.3f} requests/s" if found.sustained else "none was sustained"
    lines.append(f"capacity: {', '.join(filter(None, (least, above)))}")
    if found.ended is not None:
        lines.append(f"the search ended early: {found.ended}")
    elif found.spread > within:
        lines.append(f"not within {within:.0%}: more --most-runs, or another --start-rate, would bring it closer")
    return "\n".join(lines)
