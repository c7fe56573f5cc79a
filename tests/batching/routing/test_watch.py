"""min-ttft steps back when another policy is seen to do better, and returns when it no longer is."""

import numpy as np
import pytest

from burrstone.batching.routing.memory import new_memory
from burrstone.batching.routing.spec import RouterKnobs, router_policy
from burrstone.batching.routing.watch import AFFINITY, LOAD, NUM_ARMS, TURN, deciding_arm, expect, observe


class Watched:
    """The kernels with made-up predictions and first tokens, by arm."""

    def __init__(self, **knobs: float) -> None:
        self.policy = router_policy("min-ttft", knobs=RouterKnobs(**knobs)).record()  # type: ignore[arg-type]
        self.memory = new_memory(4)

    @property
    def lead(self) -> int:
        return int(self.memory.counters[0]["lead"])

    def decide(self) -> int:
        arm = int(deciding_arm(self.policy, self.memory.counters, self.memory.arms))
        self.memory.counters[0]["decisions"] += 1
        return arm

    def live(self, num_requests: int, predicted_s: list[float], observed_s: list[float]) -> None:
        rng = np.random.default_rng(1)
        for _ in range(num_requests):
            for arm in range(NUM_ARMS):
                expect(self.memory.arms, arm, predicted_s[arm])
            arm = self.decide()
            noisy_s = observed_s[arm] * rng.uniform(0.5, 1.5)
            observe(self.policy, self.memory.counters, self.memory.arms, 1 << arm, predicted_s[arm], noisy_s)


def test_affinity_that_holds_its_promise_leads() -> None:
    watched = Watched()
    watched.live(2000, [0.5, 1.0, 2.0], [0.5, 1.0, 2.0])
    assert watched.lead == AFFINITY
    assert watched.memory.counters[0]["lead_changes"] == 0


@pytest.mark.parametrize(("better", "observed_s"), [(LOAD, [1.5, 1.0, 2.0]), (TURN, [1.5, 1.4, 1.0])])
def test_it_steps_back_to_what_is_seen_to_be_faster(better: int, observed_s: list[float]) -> None:
    watched = Watched()
    watched.live(2000, [0.5, 1.0, 2.0], observed_s)
    assert watched.lead == better


def test_it_returns_when_affinity_pays_again() -> None:
    watched = Watched()
    watched.live(2000, [0.5, 1.0, 2.0], [1.5, 1.0, 2.0])
    assert watched.lead == LOAD
    watched.live(8000, [0.5, 1.0, 2.0], [0.5, 1.0, 2.0])
    assert watched.lead == AFFINITY


def test_between_equals_it_stays() -> None:
    watched = Watched()
    watched.live(4000, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert watched.memory.counters[0]["lead_changes"] == 0


def test_unwatched_it_never_tries_another_arm() -> None:
    watched = Watched(watch=0)
    watched.live(500, [0.5, 1.0, 2.0], [9.0, 1.0, 1.0])
    assert watched.lead == AFFINITY
    assert watched.memory.arms[LOAD]["samples"] == watched.memory.arms[TURN]["samples"] == 0


def test_trials_are_few_once_each_arm_was_judged_and_shared_by_the_others() -> None:
    watched = Watched(trial_every=32)
    watched.memory.arms["samples"] = 100
    arms = [watched.decide() for _ in range(640)]
    assert [arms.count(arm) for arm in (AFFINITY, LOAD, TURN)] == [620, 10, 10]
