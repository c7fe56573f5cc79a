"""What a hit is worth, learned from first tokens."""

import numpy as np
import pytest

from burrstone.batching.routing.gain import hit_trust, learn_gain, new_gain


def after_requests(*, found_share: float, spared_share: float, slowness: float = 1.0) -> float:
    """The trust after 400 requests whose engines find and spare such shares of what was claimed."""
    rng = np.random.default_rng(5)
    gain = new_gain()
    for _ in range(400):
        waiting_s, whole_s, share = rng.uniform(0, 2), rng.uniform(0.1, 1), rng.uniform(0, 1)
        claimed = int(share * 10_000)
        found = int(found_share * claimed)
        observed_s = slowness * (waiting_s + whole_s * (1 - share * found_share * spared_share))
        learn_gain(gain, waiting_s, whole_s, share * whole_s, claimed, found, observed_s * rng.uniform(0.7, 1.3))
    return float(hit_trust(gain))


def test_before_anything_was_seen_hits_are_trusted() -> None:
    assert hit_trust(new_gain()) == pytest.approx(1.0)


def test_hits_that_hold_what_they_promise_stay_trusted() -> None:
    assert after_requests(found_share=1.0, spared_share=1.0) > 0.85


def test_a_cache_that_is_not_there_is_found_out() -> None:
    assert after_requests(found_share=0.0, spared_share=1.0) < 0.05


def test_hits_that_spare_no_time_are_found_out() -> None:
    assert after_requests(found_share=1.0, spared_share=0.0) < 0.15


def test_a_slow_engine_is_not_taken_for_a_bad_cache() -> None:
    assert after_requests(found_share=1.0, spared_share=1.0, slowness=3.0) > 0.85
