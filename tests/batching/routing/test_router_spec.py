"""Names of router policies and their knobs."""

import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.routing.spec import ROUTER_IDS, RouterKnobs, router_policy


@pytest.mark.parametrize("name", ROUTER_IDS)
def test_each_name_has_its_policy(name: str) -> None:
    assert router_policy(name).record()["policy"] == ROUTER_IDS[name]


def test_an_unknown_name_is_refused_and_the_nearest_is_told() -> None:
    with pytest.raises(UsageError, match=r"router.policy: no policy 'min-tftt' .*; did you mean 'min-ttft'\?"):
        router_policy("min-tftt")


@pytest.mark.parametrize(
    ("knobs", "rule"),
    [
        ({"work_weight": -1.0}, "work_weight must be a number >= 0, got -1.0"),
        ({"tolerance": float("nan")}, "tolerance must be a number >= 0"),
        ({"trial_every": 1}, "max_probes, trial_every and first_trial_every must be >= 2"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, float], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        RouterKnobs(**knobs)  # type: ignore[arg-type]


def test_a_seed_of_any_size_fits_the_record() -> None:
    assert router_policy("p2c", seed=-1).record()["seed"] == (1 << 64) - 1
