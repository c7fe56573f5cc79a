"""Policies by name: what is accepted, and what a person is told otherwise."""

import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.policies.spec import Knobs, PolicySpec


def test_tiers_are_read_outermost_first() -> None:
    spec = PolicySpec.parse("priority>vtc > slo")
    assert spec.tiers == ("priority", "vtc", "slo")
    assert str(spec) == "priority > vtc > slo"
    assert not spec.neutral
    assert PolicySpec.parse("fcfs").neutral


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slow", "did you mean 'slo'"),
        ("", "no tier ''"),
        ("slo > slo", "different tiers"),
        ("fcfs > priority > slo > vtc > program", "at most 4"),
        ("priority > vtcc", "did you mean 'vtc'"),
    ],
)
def test_what_is_not_a_policy_is_named(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PolicySpec.parse(text)


@pytest.mark.parametrize("knob", ["aging_s", "ttl_s", "output_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_knobs_are_numbers_from_zero(knob: str, value: float) -> None:
    with pytest.raises(UsageError, match=knob):
        Knobs.from_dict({knob: value})


def test_every_knob_reaches_the_kernels() -> None:
    knobs = Knobs(prompt_weight=3.0, relegated_every=5, aging_s=7.0)
    record = PolicySpec.parse("vtc", knobs).record()
    assert (record["prompt_weight"], record["relegated_every"], record["aging_s"]) == (3.0, 5, 7.0)
