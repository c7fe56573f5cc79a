"""A workload says what is wrong with it, and can be cut without losing who follows whom."""

from typing import Any

import numpy as np
import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.workload_types import Prefixes, Workload


def _workload(**columns: Any) -> Workload:
    given: dict[str, Any] = {"arrival_s": [0.0, 1.0, 1.0], "input_tokens": [5, 6, 7], "output_tokens": [1, 2, 3]}
    return Workload(**(given | columns))


def test_what_is_not_given_has_a_default() -> None:
    workload = _workload(tenant=[0, 2, 1])
    assert workload.max_tokens.tolist() == [1, 2, 3]
    assert workload.predicted_tokens.tolist() == [-1.0, -1.0, -1.0]
    assert workload.after.tolist() == [-1, -1, -1]
    assert np.all(np.isinf(workload.ttft_s))
    assert workload.tenant_weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"arrival_s": [0.0, 2.0, 1.0]}, r"arrival_s must not fall.*request 2"),
        ({"arrival_s": [0.0, 1.0, np.inf]}, r"arrival_s must be numbers.*request 2"),
        ({"input_tokens": [5, 0, 7]}, r"input_tokens must be >= 1 \(request 1\)"),
        ({"output_tokens": [1, 2]}, "output_tokens must have 3 entries"),
        ({"max_tokens": [1, 1, 3]}, r"max_tokens must be at least output_tokens \(request 1\)"),
        ({"after": [-1, 1, 0]}, r"after must be an earlier request.*request 1"),
        ({"tenant": [0, 1, 2], "tenant_weight": [1.0]}, r"tenant must be a row of tenant_weight \(request 1\)"),
        ({"think_s": [0.0, -1.0, 0.0]}, "think_s must be numbers"),
        ({"ttft_s": [1.0, np.nan, 1.0]}, "ttft_s must be >= 0"),
        ({"predicted_tokens": [1.0, -2.0, 1.0]}, r"predicted_tokens must be >= 0.*request 1"),
        ({"prefixes": Prefixes(np.array([0, 1]), np.array([1], np.uint64))}, "one entry more than requests"),
    ],
)
def test_what_cannot_be_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _workload(**columns)


def test_prefixes_fit_together() -> None:
    with pytest.raises(UsageError, match="starts must rise"):
        Prefixes(np.array([0, 2]), np.array([1], np.uint64))


def test_a_part_keeps_who_follows_whom() -> None:
    prefixes = Prefixes(np.array([0, 1, 1, 3]), np.array([4, 5, 6], np.uint64))
    part = _workload(after=[-1, -1, 1], prefixes=prefixes).take(np.array([1, 2]))
    assert part.after.tolist() == [-1, 0]
    assert part.prefixes is not None
    assert part.prefixes.starts.tolist() == [0, 0, 2] and part.prefixes.hashes.tolist() == [5, 6]
    with pytest.raises(UsageError, match="left out"):
        _workload(after=[-1, -1, 1]).take(np.array([0, 2]))
