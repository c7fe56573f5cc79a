"""Non-negative least squares: the optimum, and no outlier in it."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.sim.fit.nnls import Floats, nnls, robust_nnls


def by_trying_all(features: Floats, target: Floats) -> float:
    """The least squared error over every choice of columns whose own solution is not negative."""
    best = float(target @ target)
    for size in range(1, features.shape[1] + 1):
        for columns in combinations(range(features.shape[1]), size):
            chosen = features[:, columns]
            found = np.linalg.lstsq(chosen, target, rcond=None)[0]
            if np.all(found >= 0):
                best = min(best, float(np.sum((chosen @ found - target) ** 2)))
    return best


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(4, 20), columns=st.integers(1, 4), spread=st.integers(0, 8))
def test_no_other_choice_of_columns_is_better(seed: int, rows: int, columns: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, columns)) * 10.0 ** np.linspace(0, spread, columns)
    target = rng.normal(size=rows)
    found = nnls(features, target)
    assert np.all(found >= 0)
    error = float(np.sum((features @ found - target) ** 2))
    assert error == pytest.approx(by_trying_all(features, target), rel=1e-6, abs=1e-9)


def test_columns_without_a_trace_cost_nothing() -> None:
    features = np.column_stack([np.ones(5), np.zeros(5)])
    assert nnls(features, np.full(5, 3.0)) == pytest.approx([3.0, 0.0])


def test_outliers_lose_their_weight() -> None:
    rng = np.random.default_rng(1)
    features = np.column_stack([np.ones(400), rng.uniform(0, 10, 400)])
    target = features @ [2.0, 0.5] + rng.normal(0, 0.01, 400)
    target[::10] += 5.0
    found, weights = robust_nnls(features, target, np.ones(400))
    assert found == pytest.approx([2.0, 0.5], rel=0.005)
    assert weights[::10].max() < 0.01
    assert np.median(weights) > 0.5
