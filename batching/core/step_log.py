"""The log of a live engine's scheduler: one JSON object a line, first the engine, then one record a step.

The engine writes it, `replay` decides the same steps again and compares, calibration fits step times to it.
A record's events come in the order in which the scheduler saw them: what ended after the last step, then what came or
was cancelled before this one.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np

from burrstone.batching.core.hashing import SEED, fold
from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.requests import NO_DEADLINE_S
from burrstone.batching.errors import UsageError

VERSION = 2


@dataclass(frozen=True, slots=True)
class LogHeader:
    """The engine that wrote the log: everything besides the requests that its decisions depend on."""

    policy: str
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int  # without vLLM's null block
    prefix_caching: bool
    model: dict[str, float]  # StepModel's fields
    knobs: dict[str, float] = field(default_factory=dict)  # of the policy, where they are not the defaults
    num_tenants: int = 1
    version: int = VERSION

    def to_line(self) -> str:
        """As JSON, without a line end."""
        return json.dumps({"engine": asdict(self)}, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request has come. Fields as in core.requests.REQUEST; block_hashes are the low 64 bits of vLLM's, of the
    prompt's full blocks, only with prefix caching. rested: programs that the engine was told to be at rest with it."""

    seq: int
    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    predicted_tokens: float
    tenant: int = 0
    weight: float = 1.0
    program: int = -1
    program_arrival_s: float = 0.0
    priority: int = 0
    ttft_deadline_s: float = NO_DEADLINE_S
    tpot_s: float = NO_DEADLINE_S
    deadline_s: float = NO_DEADLINE_S
    block_hashes: tuple[int, ...] = ()
    rested: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A request has ended, by its last token or by being cancelled; block_hashes are those of the full blocks that
    followed the ones told at arrival. during_step: it was cancelled while a step ran, so its blocks were freed before
    those of the requests that finished with the step."""

    seq: int
    cancelled: bool
    output_tokens: int
    block_hashes: tuple[int, ...] = ()
    during_step: bool = False


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What the step had to compute, in the terms of the step model.

    decode_seqs and kv_tokens count rows that were not prefilling and their computed tokens before the step;
    attention_pairs is the sum of m * (c + m / 2) over prefilling rows of m scheduled tokens after c computed ones.
    """

    prefill_tokens: float
    decode_seqs: float
    kv_tokens: float
    attention_pairs: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One scheduling decision. Hashes are unsigned 64-bit integers."""

    step: int
    now_s: float  # what plan() was given
    plan_hash: int  # what plan() returned
    scheduled_hash: int  # scheduled_hash() of (seq, tokens) in the order of vLLM's num_scheduled_tokens
    free_blocks: int  # before the decision
    num_tokens: int  # scheduled
    events: tuple[Arrived | Ended, ...] = ()  # since the last record
    load: StepLoad | None = None
    elapsed_s: float | None = None  # how long the step took, known to whoever waits for it
    hook_s: float | None = None  # of which deciding it took so long

    def to_line(self) -> str:
        """As JSON, without a line end. No deadline is null."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "events"}
        record["load"] = None if self.load is None else asdict(self.load)
        record["events"] = [_event_to_json(event) for event in self.events]
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Raises UsageError for anything that is not one."""
        try:
            given = json.loads(line)
            events = tuple(_event_from_json(event) for event in given.pop("events"))
            load = given.pop("load")
            return cls(**given, events=events, load=None if load is None else StepLoad(**load))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UsageError(f"step log: not a step record ({error}): {line[:80]!r}") from error


@kernel
def fold_scheduled(hash_: int, seq: int, num_tokens: int) -> int:
    """Fold one scheduled request into the step's scheduled_hash, which starts from hashing.SEED."""
    return fold(fold(hash_, seq), num_tokens)  # type: ignore[arg-type,return-value]


@kernel
def _fold_all(scheduled: np.ndarray) -> np.uint64:
    hash_ = SEED
    for place in range(scheduled.shape[0]):
        hash_ = fold_scheduled(hash_, scheduled[place, 0], scheduled[place, 1])  # type: ignore[assignment,arg-type]
    return hash_


def scheduled_hash(scheduled: Iterable[tuple[int, int]]) -> int:
    """Hash of the (seq, tokens) of one step, in the order of scheduling."""
    return int(_fold_all(np.array(list(scheduled), dtype=np.int64).reshape(-1, 2)))


def read_log(lines: Iterable[str]) -> tuple[LogHeader, Iterator[StepRecord]]:
    """The engine and its steps. Raises UsageError where the log is not one of this version."""
    rest = iter(lines)
    try:
        header = LogHeader(**json.loads(next(rest))["engine"])
    except (StopIteration, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"step log: the first line must describe the engine ({error})") from error
    if header.version != VERSION:
        raise UsageError(f"step log: version {header.version}, this reads {VERSION}; write the log again")
    return header, (StepRecord.from_line(line) for line in rest if line.strip())


def _event_to_json(event: Arrived | Ended) -> dict[str, Any]:
    values = {name: _finite(value) for name, value in asdict(event).items()}
    return {"arrived" if isinstance(event, Arrived) else "ended": values}


def _event_from_json(given: dict[str, dict[str, Any]]) -> Arrived | Ended:
    ((kind, values),) = given.items()
    values = {name: NO_DEADLINE_S if value is None else value for name, value in values.items()}
    for name in ("block_hashes", "rested"):
        if name in values:
            values[name] = tuple(values[name])
    if kind not in ("arrived", "ended"):
        raise ValueError(f"event {kind!r}")
    return Arrived(**values) if kind == "arrived" else Ended(**values)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value
