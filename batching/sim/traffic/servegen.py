"""ServeGen's client mixes: each client's rate, burstiness and lengths, window by window (ServeGen, arXiv 2505.09999)."""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.arrivals import Lengths, Observed, gamma_arrivals, weibull_arrivals
from burrstone.batching.sim.traffic.trace_rows import TraceRow, count_or_zero, mapping, number
from burrstone.batching.sim.traffic.workload import Slo, merge, with_terms
from burrstone.batching.sim.traffic.workload_types import Workload

_MEMBER = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")
_NUMBER = "a number >= 0"


@dataclass(frozen=True, slots=True)
class Window:
    """Ten minutes or so of a client: gaps between its requests are Gamma or Weibull of this shape."""

    start_s: float
    rate: float
    family: str
    shape: float


@dataclass(slots=True)
class Client:
    """One client's windows, and its lengths by the time from which they hold."""

    number: int
    windows: list[Window]
    input_tokens: dict[float, Lengths] = field(default_factory=dict)
    output_tokens: dict[float, Lengths] = field(default_factory=dict)


def read_servegen(path: Path) -> list[Client]:
    """The clients of a ServeGen archive (.tar.xz), those without published lengths left out. Raises UsageError."""
    traces: dict[int, list[Window]] = {}
    lengths: dict[int, dict[str, dict[float, Lengths]]] = {}
    for name, text in _members(path):
        found = _MEMBER.search(name)
        if found and found[2] == "trace.csv":
            traces[int(found[1])] = list(_windows(path / name, text))
        elif found:
            lengths[int(found[1])] = _lengths(path / name, text)
    if not traces:
        raise UsageError(f"{path}: no chunk-<n>-trace.csv in it; a ServeGen archive has one for each client")
    return [Client(number, traces[number], **lengths[number]) for number in sorted(traces) if number in lengths]


def client_mix(clients: list[Client], *, start_s: float, duration_s: float, seed: int, scale: float = 1.0) -> Workload:
    """What the clients send in [start_s, start_s + duration_s), at `scale` times their rates; one tenant a client."""
    parts = [_client_workload(client, start_s, start_s + duration_s, seed, scale) for client in clients]
    return merge(parts)


def _client_workload(client: Client, start_s: float, end_s: float, seed: int, scale: float) -> Workload:
    rng = np.random.default_rng([seed, client.number])
    arrivals, inputs, outputs = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    bounds = [window.start_s for window in client.windows[1:]] + [np.inf]
    for window, next_s in zip(client.windows, bounds, strict=True):
        from_s, to_s = max(window.start_s, start_s), min(next_s, end_s)
        given = _in_force(client.input_tokens, window.start_s), _in_force(client.output_tokens, window.start_s)
        if window.rate == 0 or from_s >= to_s or given[0] is None or given[1] is None:
            continue
        rate = window.rate * scale
        if window.family == "Weibull":
            times_s = weibull_arrivals(rng, rate, to_s - from_s, shape=window.shape)
        else:
            times_s = gamma_arrivals(rng, rate, to_s - from_s, cv=window.shape**-0.5)
        arrivals.append(times_s + from_s - start_s)
        inputs.append(given[0].draw(rng, len(times_s)))
        outputs.append(given[1].draw(rng, len(times_s)))
    workload = Workload(np.concatenate(arrivals), np.concatenate(inputs), np.concatenate(outputs))
    return with_terms(workload, slo=Slo())


def _in_force(lengths: dict[float, Lengths], time_s: float) -> Lengths | None:
    """The latest published by then; a client may have none yet."""
    earlier = [start_s for start_s in lengths if start_s <= time_s]
    return lengths[max(earlier)] if earlier else None


def _members(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read().decode("utf-8")
    except (OSError, tarfile.TarError) as error:
        raise UsageError(f"{path}: cannot be read as a tar archive: {error}") from None


def _windows(path: Path, text: str) -> Iterator[Window]:
    for line, row in enumerate(text.splitlines(), start=1):
        names = ("start", "rate", "cv", "family", "shape", "scale")
        values = dict(zip(names, row.split(","), strict=False))
        fields_of = TraceRow(path, line, values)
        start_s, rate = fields_of.read("start", number, _NUMBER), fields_of.read("rate", number, _NUMBER)
        family = values.get("family", "")
        if not family:
            # No requests, or too few to fit a distribution.
            yield Window(start_s, rate, "Gamma", 1.0)
        elif family not in ("Gamma", "Weibull"):
            fields_of.fail(f"family must be Gamma or Weibull, got {family!r}")
        else:
            yield Window(start_s, rate, family, fields_of.read("shape", number, _NUMBER))


def _lengths(path: Path, text: str) -> dict[str, dict[float, Lengths]]:
    """`input_tokens` and `output_tokens`: time -> distribution, where there is one."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    found: dict[str, dict[float, Lengths]] = {"input_tokens": {}, "output_tokens": {}}
    for start, published in document.items():
        row = TraceRow(path, 1, mapping(published), f"{start}.")
        for name, by_time in found.items():
            weights = row.read(name, _weights, "a mapping of lengths to shares, written as text")
            if weights:
                by_time[float(start)] = Observed(np.array(list(weights)), np.array(list(weights.values())))
    return found


def _weights(value: object) -> dict[int, float]:
    """Of text such as `{45: 0.25, 46: 0.75}`."""
    text = str(value).strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError(value)
    pairs = [pair.split(":") for pair in text[1:-1].split(",") if pair.strip()]
    return {count_or_zero(tokens): number(share) for tokens, share in pairs}
