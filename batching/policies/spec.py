"""Which engine policy, with which knobs: `slo`, or tiers such as `priority > vtc > slo`, the first one deciding first."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from burrstone.batching.errors import UsageError

FCFS, PRIORITY, SLO, VTC, PROGRAM, SJF_RANK = range(6)
TIER_IDS = {
    "fcfs": FCFS,
    "priority": PRIORITY,
    "slo": SLO,
    "vtc": VTC,
    "program": PROGRAM,
    "sjf-rank": SJF_RANK,
}
MAX_TIERS = 4

POLICY = np.dtype(
    [
        ("num_tiers", np.int64),
        ("tier_0", np.int64),
        ("tier_1", np.int64),
        ("tier_2", np.int64),
        ("tier_3", np.int64),
        ("decode_tokens", np.int64),
        ("prompt_weight", np.float64),
        ("output_weight", np.float64),
        ("work_weight", np.float64),
        ("patience_s", np.float64),
        ("min_chunk_tokens", np.int64),
        ("slack_margin", np.float64),
        ("relegated_every", np.int64),
        ("aging_s", np.float64),
        ("length_quantile", np.float64),
        ("ttl_s", np.float64),
    ]
)

# What a policy counts besides tenants: one record an engine.
STATE = np.dtype(
    [
        ("admitted_since_relegated", np.int64),
        ("promoted_seq", np.int64),  # the relegated request whose turn it is
        ("lift", np.float64),  # vtc: the service of the tenant that was served last
    ]
)


@dataclass(frozen=True, slots=True)
class Knobs:
    """What can be tuned. The defaults are what the published figures were made with."""

    prompt_weight: float = 1.0  # vtc: what a prompt token costs
    output_weight: float = 2.0  # vtc: what an output token costs
    work_weight: float = 1.0  # slo: seconds of deadline that a second of remaining prefill is worth
    patience_s: float = 60.0  # slo: first token due after this long for requests that name no deadline
    min_chunk_tokens: int = 64  # slo: prefill tokens in a step, however little slack decodes have
    slack_margin: float = 0.9  # slo: share of the tightest decode's slack that a step may use
    relegated_every: int = 16  # slo: one admission in so many goes to a request that has lost its deadline
    aging_s: float = 60.0  # sjf-rank: whoever waited this long goes first
    length_quantile: float = 0.7  # sjf-rank: of a tenant's past output lengths, as the prediction
    ttl_s: float = 30.0  # program: longest time that a call's KV cache is kept for the program's next call

    def __post_init__(self) -> None:
        for knob in fields(self):
            value = getattr(self, knob.name)
            if not np.isfinite(value) or value < 0:
                raise UsageError(f"scheduler knob {knob.name} must be a number >= 0, got {value}")
        if self.relegated_every < 1 or self.min_chunk_tokens < 1:
            raise UsageError("scheduler knobs relegated_every and min_chunk_tokens must be >= 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "Knobs":
        """Knobs by name, the others at their defaults. Raises UsageError for an unknown name or a broken whole number."""
        known = {knob.name: knob.type for knob in fields(cls)}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"scheduler knob {name!r} does not exist (one of {', '.join(known)}){hint}")
            if known[name] is int and value != int(value):
                raise UsageError(f"scheduler knob {name} must be a whole number, got {value}")
        return cls(**{name: known[name](value) for name, value in values.items()})  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy by its tiers, outermost first."""

    tiers: tuple[str, ...]
    knobs: Knobs = field(default_factory=Knobs)

    @classmethod
    def parse(cls, text: str, knobs: Knobs | None = None) -> "PolicySpec":
        """`"vtc > slo"` -> its tiers. Raises UsageError for unknown, repeated or too many tiers."""
        tiers = tuple(part.strip() for part in text.split(">"))
        for tier in tiers:
            if tier not in TIER_IDS:
                near = difflib.get_close_matches(tier, TIER_IDS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"scheduler policy {text!r}: no tier {tier!r} (one of {', '.join(TIER_IDS)}){hint}")
        if len(set(tiers)) != len(tiers) or len(tiers) > MAX_TIERS:
            raise UsageError(f"scheduler policy {text!r}: at most {MAX_TIERS} different tiers")
        return cls(tiers, knobs or Knobs())

    def __str__(self) -> str:
        return " > ".join(self.tiers)

    @property
    def neutral(self) -> bool:
        """Whether it leaves vLLM's own order and budget alone."""
        return self.tiers == ("fcfs",)

    def record(self, *, decode_tokens: int = 1) -> np.void:
        """As kernels take it: a record of POLICY. decode_tokens: that a decode takes of a step, drafted ones included."""
        record = np.zeros(1, dtype=POLICY)[0]
        record["decode_tokens"] = decode_tokens
        record["num_tiers"] = len(self.tiers)
        for index, tier in enumerate(self.tiers):
            record[f"tier_{index}"] = TIER_IDS[tier]
        for knob in fields(self.knobs):
            record[knob.name] = getattr(self.knobs, knob.name)
        return record


def new_state() -> np.void:
    """The counters of an engine that has decided nothing yet: a record of STATE."""
    state = np.zeros(1, dtype=STATE)[0]
    state["promoted_seq"] = -1
    return state
