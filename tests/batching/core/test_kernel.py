"""A kernel is the same by itself, as a part of another one, and as plain Python."""

import os

import numpy as np
import pytest

from burrstone.batching.core.kernel import kernel, lean_kernel
from burrstone.batching.core.parts import Kernel


@lean_kernel
def third(values: np.ndarray, place: int) -> float:
    if place >= values.shape[0]:
        raise IndexError("no such place")
    return float(values[place]) / 3.0


@kernel
def thirds(values: np.ndarray, count: int) -> np.ndarray:
    found = np.empty(count)
    for place in range(count):
        found[place] = third(values, place)
    return found


VALUES = np.array([1.0, 7.0, 1e300])


def test_a_part_gives_what_it_gives_by_itself() -> None:
    assert thirds(VALUES, 3).tolist() == [third(VALUES, place) for place in range(3)] == [v / 3.0 for v in VALUES]


def test_a_part_raises_through_its_caller_and_to_python() -> None:
    with pytest.raises(IndexError, match="no such place"):
        thirds(VALUES, 4)
    with pytest.raises(IndexError, match="no such place"):
        third(VALUES, 3)


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled here")
def test_what_only_kernels_call_has_no_code_of_its_own() -> None:
    @lean_kernel
    def doubled(value: float) -> float:
        return value + value

    @lean_kernel
    def fourfold(value: float) -> float:
        return doubled(doubled(value))

    assert fourfold(1.5) == 6.0
    assert isinstance(doubled, Kernel) and isinstance(fourfold, Kernel)
    assert (len(doubled.overloads), len(doubled.whole.overloads)) == (1, 0)
    assert (len(fourfold.overloads), len(fourfold.whole.overloads)) == (0, 1)
