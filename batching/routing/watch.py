"""min-ttft watches itself: does sending requests where their prefix is pay, against what simpler policies would do?

Every request is priced under three arms: the engine of least predicted TTFT, the least loaded one, the next in turn.
A few requests are sent as a trial where another arm would send them, so the bias of each arm's predictions, observed
over predicted TTFT, is known. An arm's estimate is its mean prediction times its bias; the best estimate leads.
"""

import numpy as np

from burrstone.batching.core.kernel import kernel

AFFINITY, LOAD, TURN = range(3)
NUM_ARMS = 3

ARM = np.dtype(
    [
        ("expected_s", np.float64),  # decayed sum over all requests of the TTFT predicted at this arm's engine
        ("observed_s", np.float64),  # decayed sum of observed TTFT over requests that went to this arm's engine
        ("predicted_s", np.float64),  # the same of what was predicted for them
        ("samples", np.int64),  # of these, since the lead last changed
    ]
)
COUNTERS = np.dtype(
    [
        ("decisions", np.int64),
        ("turn", np.int64),  # the engine at which the next turn begins
        ("lead", np.int64),  # the arm that decides all but the trials
        ("lead_changes", np.int64),
    ]
)
_HORIZON = 128.0
_DECAY = 1.0 - 1.0 / _HORIZON


@kernel
def deciding_arm(policy: np.void, counters: np.ndarray, arms: np.ndarray) -> int:
    """Whose engine this request gets: the lead's, or for a trial another's, in turn. There are more trials until
    each arm was tried often enough to be judged."""
    lead = counters[0]["lead"]
    if policy["watch"] == 0:
        return AFFINITY
    every = policy["trial_every"]
    for arm in range(NUM_ARMS):
        if arms[arm]["samples"] < policy["min_trials"]:
            every = policy["first_trial_every"]
    number = counters[0]["decisions"]
    if number % every != every - 1:
        return lead
    return (lead + 1 + (number // every) % (NUM_ARMS - 1)) % NUM_ARMS


@kernel
def expect(arms: np.ndarray, arm: int, predicted_s: float) -> None:
    """A request came, and would see this TTFT at the arm's engine."""
    arms[arm]["expected_s"] = arms[arm]["expected_s"] * _DECAY + predicted_s


@kernel
def observe(
    policy: np.void, counters: np.ndarray, arms: np.ndarray, agreeing: int, predicted_s: float, observed_s: float
) -> None:
    """A request got its first token. agreeing: bit 1 << arm for each arm that would have sent it there."""
    for arm in range(NUM_ARMS):
        if agreeing & (1 << arm):
            arms[arm]["observed_s"] = arms[arm]["observed_s"] * _DECAY + observed_s
            arms[arm]["predicted_s"] = arms[arm]["predicted_s"] * _DECAY + predicted_s
            arms[arm]["samples"] += 1
    if policy["watch"] != 0:
        _elect(policy, counters, arms)


@kernel
def estimate_s(arms: np.ndarray, arm: int) -> float:
    """Mean TTFT under the arm, up to a factor that all arms share."""
    return arms[arm]["expected_s"] * arms[arm]["observed_s"] / max(arms[arm]["predicted_s"], 1e-12)


@kernel
def _elect(policy: np.void, counters: np.ndarray, arms: np.ndarray) -> None:
    lead = counters[0]["lead"]
    best, least_s = lead, np.inf
    for arm in range(NUM_ARMS):
        samples = min(arms[arm]["samples"], arms[lead]["samples"])
        if arm == lead or samples < policy["min_trials"]:
            continue
        # A few samples must show a large difference. Between equals affinity leads.
        margin = 1.0 + policy["caution"] / np.sqrt(min(float(samples), _HORIZON))
        if arm != AFFINITY:
            margin += policy["tolerance"]
        arm_s = estimate_s(arms, arm)
        if arm_s * margin < estimate_s(arms, lead) and arm_s < least_s:
            best, least_s = arm, arm_s
    if best != lead:
        counters[0]["lead"] = best
        counters[0]["lead_changes"] += 1
        # Under another lead the engines are in another state: old samples tell nothing.
        for arm in range(NUM_ARMS):
            arms[arm]["samples"] = 0
            arms[arm]["observed_s"] = arms[arm]["predicted_s"] = 0.0
