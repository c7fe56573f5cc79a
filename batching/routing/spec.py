"""Which router policy, with which knobs."""

import difflib
from dataclasses import dataclass, field, fields

import numpy as np

from burrstone.batching.errors import UsageError

ROUND_ROBIN, LEAST_LOAD, P2C, SESSION, MIN_TTFT = range(5)
ROUTER_IDS = {
    "round-robin": ROUND_ROBIN,
    "least-load": LEAST_LOAD,
    "p2c": P2C,
    "session": SESSION,
    "min-ttft": MIN_TTFT,
}

ROUTER = np.dtype(
    [
        ("policy", np.int64),
        ("seed", np.uint64),
        ("work_weight", np.float64),
        ("staleness_weight", np.float64),
        ("kv_wait_s", np.float64),
        ("max_probes", np.int64),
        ("watch", np.int64),
        ("trial_every", np.int64),
        ("min_trials", np.int64),
        ("first_trial_every", np.int64),
        ("tolerance", np.float64),
        ("caution", np.float64),
    ]
)


@dataclass(frozen=True, slots=True)
class RouterKnobs:
    """What can be tuned. All but kv_wait_s are for min-ttft alone."""

    work_weight: float = (
        2.0  # seconds of waiting that a second of prefill counts as: work saved also helps who comes next
    )
    staleness_weight: float = 0.1  # seconds that a second of a view's age counts as
    kv_wait_s: float = 1.0  # added where the prompt does not fit in the free KV cache
    max_probes: int = 64  # engines looked at for one request; with more, those of its prefix and some by chance
    watch: bool = True  # learn what hits gain, compare with least-load and round-robin, step back to what is better
    trial_every: int = 32  # one request in so many goes where another policy would send it
    min_trials: int = 16  # observed trials before a policy is believed to be better
    first_trial_every: int = 8  # the same until min_trials were observed
    tolerance: float = 0.03  # how much better another policy must be
    caution: float = 0.5  # and how much more than that after one sample; it shrinks with their square root

    def __post_init__(self) -> None:
        for knob in fields(self):
            value = getattr(self, knob.name)
            if not np.isfinite(value) or value < 0:
                raise UsageError(f"router knob {knob.name} must be a number >= 0, got {value}")
        if min(self.max_probes, self.trial_every, self.first_trial_every) < 2:
            raise UsageError("router knobs max_probes, trial_every and first_trial_every must be >= 2")


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """A router policy, its knobs, and the seed of all that it leaves to chance."""

    name: str
    seed: int = 0
    knobs: RouterKnobs = field(default_factory=RouterKnobs)

    def record(self) -> np.void:
        """As kernels take it: a record of ROUTER."""
        record = np.zeros(1, dtype=ROUTER)[0]
        record["policy"] = ROUTER_IDS[self.name]
        record["seed"] = self.seed & ((1 << 64) - 1)
        for knob in fields(self.knobs):
            record[knob.name] = getattr(self.knobs, knob.name)
        return record


def router_policy(name: str, *, seed: int = 0, knobs: RouterKnobs | None = None) -> RouterSpec:
    """The router policy of that name. Raises UsageError for unknown ones, naming the nearest."""
    if name not in ROUTER_IDS:
        near = difflib.get_close_matches(name, ROUTER_IDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"router.policy: no policy {name!r} (one of {', '.join(ROUTER_IDS)}){hint}")
    return RouterSpec(name, seed, knobs or RouterKnobs())
