"""Results of the bench commands, told apart by what is in them. Every complaint is a UsageError that names the file."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burrstone.batching.errors import UsageError
from burrstone.bench.load.record import Record, read_records
from burrstone.bench.load.summary import duration_s, parts, summarize

Floats = NDArray[np.float64]

_RUN = {"ttfts", "itls", "start_times", "output_lens", "latencies", "errors", "goodput_rps", "tenants"}
_SLO = {"tried", "sustained_rps", "failed_rps", "attainment"}
_COMPARE = {"failed", "lateness_p99_ms", "client_was_bottleneck", "setting"}
_SWARM = {"errors", "goodput_rps", "tenants", "workers"}
_PEERS = {"peers", "skipped", "noise", "ratios", "setting"}
_ROW = {"value", "goal", "ok"}
_RECORDS_ENDING = ".jsonl"
_EXPECTED = (
    "a result of `burrstone bench run`, `slo` or `compare` (--json), `peers` or `features` (--out) or `locust` "
    "(--json-out), or of `bench run --records` (.jsonl)"
)
_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Found:
    """A file's result, under the name by which the report calls it."""

    name: str
    result: dict[str, Any]

    @property
    def setting(self) -> dict[str, Any]:
        setting: dict[str, Any] = self.result.get("setting", {})
        return setting


@dataclass(frozen=True, slots=True)
class Summary(Found):
    """The figures of a run: a result of `bench locust`, which counts and keeps no list of requests."""

    @property
    def failures(self) -> Counter[str]:
        """Why requests failed, and how many of them."""
        errors = self.result["errors"]
        return Counter(errors if isinstance(errors, dict) else filter(None, errors))


@dataclass(frozen=True, slots=True)
class Run(Summary):
    """A result of `bench run`. Latencies are in ms, one a request; infinite where there was no answer."""

    @property
    def answered(self) -> NDArray[np.bool_]:
        return np.array([error == "" for error in self.result["errors"]], dtype=bool)

    @property
    def start_s(self) -> Floats:
        return np.array(self.result["start_times"], dtype=np.float64)

    @property
    def end_s(self) -> Floats:
        return self.start_s + np.array(self.result["latencies"], dtype=np.float64)

    @property
    def ttft_ms(self) -> Floats:
        return self._from_intended("ttfts")

    @property
    def e2e_ms(self) -> Floats:
        return self._from_intended("latencies")

    @property
    def tpot_ms(self) -> Floats:
        """Of answers that have more than one token."""
        tokens = np.array(self.result["output_lens"], dtype=np.float64)
        kept = ~self.answered | (tokens > 1)
        saying_ms = self.e2e_ms - np.where(self.answered, self.ttft_ms, 0.0)
        found: Floats = saying_ms[kept] / np.maximum(tokens[kept] - 1.0, 1.0)
        return found

    @property
    def itl_ms(self) -> Floats:
        return _MS * np.array([gap_s for gaps_s in self.result["itls"] for gap_s in gaps_s], dtype=np.float64)

    @property
    def rate(self) -> float | None:
        """Requests offered a second; None for a closed loop, or where it is not known which it was."""
        if self.setting.get("concurrency", 0) is not None:
            return None
        if self.setting.get("rate") is not None:
            return float(self.setting["rate"])
        intended_s = self._intended_s
        length_s = float(intended_s.max() - intended_s.min())
        return (len(intended_s) - 1) / length_s if length_s > 0 else None

    @property
    def _intended_s(self) -> Floats:
        return np.array(self.result.get("intended_times", self.result["start_times"]), dtype=np.float64)

    def _from_intended(self, name: str) -> Floats:
        late_s = self.start_s - self._intended_s
        found_ms = _MS * (np.array(self.result[name], dtype=np.float64) + late_s)
        return np.where(self.answered, found_ms, np.inf)


@dataclass(frozen=True, slots=True)
class Slo(Found):
    """A result of `bench slo`; the runs in the order of their rates."""

    @property
    def tried(self) -> list[dict[str, Any]]:
        return sorted(self.result["tried"], key=lambda tried: float(tried["rate"]))


@dataclass(frozen=True, slots=True)
class Compare(Found):
    """A result of `bench compare`."""

    @property
    def interval(self) -> str:
        """What lies between a row's low and high."""
        return f"{100 * self.result.get('confidence', 0.95):.0f} % interval"


@dataclass(frozen=True, slots=True)
class Judged(Found):
    """Figures with their goals: a result of `bench features`, or of another command that writes such rows."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return _judged(self.result)

    @property
    def num_met(self) -> int:
        return sum(row["ok"] is True for row in self.rows.values())


@dataclass(frozen=True, slots=True)
class Peers(Judged):
    """A result of `bench peers`; the rows are its ratios."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return _judged(self.result["ratios"])


@dataclass(slots=True)
class Results:
    """All files, by kind."""

    runs: list[Run] = field(default_factory=list)
    swarms: list[Summary] = field(default_factory=list)
    slos: list[Slo] = field(default_factory=list)
    compares: list[Compare] = field(default_factory=list)
    peers: list[Peers] = field(default_factory=list)
    features: list[Judged] = field(default_factory=list)

    @property
    def summaries(self) -> list[Summary]:
        return [*self.runs, *self.swarms]

    @property
    def all(self) -> list[Found]:
        return [*self.summaries, *self.slos, *self.compares, *self.peers, *self.features]


def read_results(files: Sequence[Path]) -> Results:
    """A result and records of the same name but for the ending are one run. Raises UsageError."""
    results, names = Results(), _names(files)
    records = {file.with_suffix(""): file for file in files if file.suffix == _RECORDS_ENDING}
    for file in files:
        if file.suffix == _RECORDS_ENDING:
            continue
        read = _read_json(file)
        if read.keys() >= _RUN:
            beside = records.pop(file.with_suffix(""), None)
            result = read if beside is None else read | _of_records(beside)
            results.runs.append(Run(names[file], result))
        elif read.keys() >= _SLO:
            results.slos.append(Slo(names[file], read))
        elif read.keys() >= _COMPARE and isinstance(read["failed"], dict):
            results.compares.append(Compare(names[file], read))
        elif read.keys() >= _SWARM:
            results.swarms.append(Summary(names[file], read))
        elif read.keys() >= _PEERS:
            results.peers.append(Peers(names[file], read))
        elif _judged(read):
            results.features.append(Judged(names[file], read))
        else:
            raise UsageError(f"{file}: not {_EXPECTED}")
    results.runs += [Run(names[file], _of_records(file)) for file in records.values()]
    return results


def _read_json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file}: not JSON ({error}); expected {_EXPECTED}") from error
    if not isinstance(read, dict):
        raise UsageError(f"{file}: not {_EXPECTED}")
    return read


def _of_records(file: Path) -> dict[str, Any]:
    """The same as `bench run --json` writes, but for what records do not have."""
    records: list[Record] = []
    try:
        records += read_records(file)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file}:{len(records) + 1}: no record of `burrstone bench run --records` ({error})"
        ) from error
    if all(math.isnan(record.ended_s) for record in records):
        raise UsageError(f"{file}: no request has ended, so there is nothing to report")
    took_s = duration_s(records)
    return summarize(records, took_s) | parts(records, took_s)


def _judged(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in result.items() if isinstance(row, dict) and row.keys() >= _ROW}


def _names(files: Iterable[Path]) -> dict[Path, str]:
    """Without folders and endings, where that tells them apart."""
    whole = {file: str(file.with_suffix("")) for file in files}
    shared = Counter(Path(name).name for name in set(whole.values()))
    return {file: Path(name).name if shared[Path(name).name] == 1 else name for file, name in whole.items()}


def floats(values: Sequence[float | None]) -> Floats:
    """What is missing is NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
