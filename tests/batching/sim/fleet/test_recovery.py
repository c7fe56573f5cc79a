"""How long a failure is felt, on arrivals and first tokens by hand."""

import math

import numpy as np
import pytest

from burrstone.batching.sim.fleet.recovery import recovery_s
from burrstone.batching.sim.run import Result


def result(arrival_s: list[float], first_token_s: list[float]) -> Result:
    none = np.zeros(len(arrival_s), np.int64)
    times = np.array(arrival_s, np.float64), np.array(first_token_s, np.float64)
    return Result(
        times[0], times[1], times[1], times[1], none, none, none, none == 0, 0.0, 0.0, 0, 0, 0, 0, 0, 0
    )  # fmt: skip


ARRIVALS = [float(second) for second in range(10)]
WHOLE = result(ARRIVALS, [second + 0.5 for second in ARRIVALS])


def test_it_lasts_until_as_few_wait_as_without_it() -> None:
    # Requests of seconds 3, 4 and 5 wait together; at 6.4 the last of them but one has its token.
    broken = result(ARRIVALS, [0.5, 1.5, 2.5, 6.2, 6.3, 6.4, 6.5, 7.5, 8.5, 9.5])
    assert recovery_s(broken, WHOLE, 3.0, 10.0) == pytest.approx(3.4)


def test_what_nobody_waits_longer_for_is_not_felt() -> None:
    assert recovery_s(WHOLE, WHOLE, 3.0, 10.0) == 0.0


def test_a_later_failure_is_not_charged_to_this_one() -> None:
    broken = result(ARRIVALS, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 9.6, 9.7, 9.8, 9.9])
    assert recovery_s(broken, WHOLE, 3.0, 6.0) == 0.0


def test_a_queue_that_stays_to_the_end_is_never_over() -> None:
    broken = result(ARRIVALS, [0.5, 1.5, 2.5, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0])
    assert recovery_s(broken, WHOLE, 3.0, 9.0) == math.inf


def test_who_decoded_on_a_lost_engine_waits_again() -> None:
    # They count as waiting from their arrival, which is no excuse: what is usual comes from the whole engines.
    broken = result(ARRIVALS, [5.0, 5.1, 5.2, 5.3, 5.4, 5.6, 6.5, 7.5, 8.5, 9.5])
    assert recovery_s(broken, WHOLE, 4.0, 9.0) == pytest.approx(1.4)
