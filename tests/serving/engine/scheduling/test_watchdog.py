"""When the hook is too slow to be kept."""

import itertools

import pytest

from burrstone.serving.engine.scheduling.watchdog import Watchdog


def steps_until_found(hook_s: list[float], at_most: int = 1000) -> int | None:
    """How many steps of these times, over and over, the watchdog bears."""
    watchdog = Watchdog()
    for count, seconds in enumerate(itertools.islice(itertools.cycle(hook_s), at_most), 1):
        if watchdog.observe(seconds):
            return count
    return None


@pytest.mark.parametrize(
    ("hook_s", "found"),
    [
        ([0.003], 32),
        ([0.003, 0.001], 63),
        ([0.003, 0.001, 0.001], None),
        ([0.001], None),
        ([1.0] + 99 * [0.0001], 101),
        ([0.2] + 99 * [0.0001], None),
    ],
)
def test_what_is_slow_often_or_very_slow_once_is_found(hook_s: list[float], found: int | None) -> None:
    assert steps_until_found(hook_s) == found


def test_a_long_first_step_compiles() -> None:
    watchdog = Watchdog()
    assert not watchdog.observe(9.0)
    assert not any(watchdog.observe(0.0001) for _ in range(200))
    assert watchdog.observe(0.3) and "300 ms" in watchdog.verdict
