"""Calibration finds what was planted under outliers, says how sure it is, and notices when the engine has changed."""

import json
from itertools import pairwise

import numpy as np
import pytest

from burrstone.batching.core.step_log import StepLoad, StepRecord
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.core.step_noise import NO_NOISE, noise_ratio
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.fit.step_drift import DriftDetector
from burrstone.batching.sim.fit.steps import Calibration, StepSamples, fit, samples_of

PLANTED = StepModel(
    base_s=0.01, prefill_token_s=5e-5, decode_seq_s=2e-4, kv_token_s=1e-7, attention_pair_s=3e-9
)  # fmt: skip
NAMES = ("base_s", "prefill_token_s", "decode_seq_s", "kv_token_s", "attention_pair_s")


def steps(model: StepModel, size: int = 2000, seed: int = 0, scatter: float = 0.02) -> StepSamples:
    """Random steps of an engine of this model; every twentieth takes three times as long."""
    rng = np.random.default_rng(seed)
    prefills = np.where(rng.random(size) < 0.3, rng.integers(1, 2000, size), 0)
    decodes = rng.integers(0, 128, size)
    contexts = rng.integers(0, 4000, size)
    features = np.column_stack(
        [
            np.ones(size),
            prefills,
            decodes,
            decodes * rng.integers(100, 3000, size),
            prefills * (contexts + prefills / 2),
        ]
    ).astype(np.float64)
    elapsed_s = features @ model.coefficients() * (1 + rng.normal(0, scatter, size))
    elapsed_s[::20] *= 3
    return StepSamples(features, elapsed_s)


def loads(samples: StepSamples) -> list[tuple[StepLoad, float]]:
    return [
        (StepLoad(*map(float, row[1:])), float(elapsed_s))
        for row, elapsed_s in zip(samples.features, samples.elapsed_s, strict=True)
    ]


def test_planted_coefficients_come_back_with_their_intervals() -> None:
    found = fit(steps(PLANTED))
    assert found.model.coefficients() == pytest.approx(PLANTED.coefficients(), rel=0.06)
    for name in NAMES:
        low, planted, high = (getattr(model, name) for model in (found.low, PLANTED, found.high))
        assert low * 0.98 <= planted <= high * 1.02
        assert high - low < 0.2 * planted
    assert found.sigma == pytest.approx(0.02, rel=0.15)


def test_the_same_log_gives_the_same_calibration_and_it_survives_a_file() -> None:
    found = fit(steps(PLANTED, 300), rounds=20)
    assert found == fit(steps(PLANTED, 300), rounds=20)
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(UsageError, match="calibration: expected exactly"):
        Calibration.from_dict({"model": {}})


def test_old_steps_can_be_forgotten() -> None:
    slower = StepModel(*(2 * PLANTED.coefficients()))
    before, after = steps(PLANTED, 1000), steps(slower, 1000, seed=1)
    both = StepSamples(*(np.concatenate(pair) for pair in zip(before, after, strict=True)))
    found = fit(both, half_life_steps=50, rounds=10)
    assert found.model.prefill_token_s == pytest.approx(slower.prefill_token_s, rel=0.05)


def test_samples_are_the_timed_steps() -> None:
    load = StepLoad(8.0, 1.0, 100.0, 32.0)
    records = [
        StepRecord(step, 0.0, 0, 0, 0, 0, load=None if step == 1 else load, elapsed_s=None if step == 2 else 0.5)
        for step in range(6)
    ]
    samples = samples_of(records, every=2)
    assert samples.features.tolist() == [[1.0, 8.0, 1.0, 100.0, 32.0]] * 2
    assert samples.elapsed_s.tolist() == [0.5, 0.5]


def test_a_log_that_cannot_tell_is_refused() -> None:
    some = steps(PLANTED, 100)
    with pytest.raises(UsageError, match="needs 50 timed steps, the log has 49"):
        fit(StepSamples(some.features[:49], some.elapsed_s[:49]))
    decodes = some.features[:, 1] == 0
    with pytest.raises(UsageError, match="prefill_tokens is 0 in every step"):
        fit(StepSamples(some.features[decodes], some.elapsed_s[decodes]))
    with pytest.raises(UsageError, match="half_life_steps must be > 0"):
        fit(some, half_life_steps=0)


def test_drift_fires_on_a_planted_change_and_not_on_noise() -> None:
    calibration = fit(steps(PLANTED), rounds=10)
    noise = loads(steps(PLANTED, 5000, seed=5))
    detector = DriftDetector(calibration)
    assert not any(detector.observe(load, elapsed_s) for load, elapsed_s in noise)
    for factor in (1.1, 0.9):
        changed = DriftDetector(calibration)
        fired = [changed.observe(load, factor * elapsed_s) for load, elapsed_s in noise[:200]]
        assert any(fired)
        assert not any(fired[:3]), "single steps prove nothing"


def test_drift_fires_on_an_engine_whose_steps_do_not_scatter() -> None:
    even = fit(steps(PLANTED, scatter=0.0), rounds=10)
    detector = DriftDetector(even)
    same = loads(steps(PLANTED, 400, seed=6, scatter=0.0))
    assert not any(detector.observe(load, elapsed_s) for load, elapsed_s in same)
    assert any(detector.observe(load, 1.1 * elapsed_s) for load, elapsed_s in same)


def test_noise_is_replayed_in_recorded_stretches() -> None:
    ratios = np.arange(1000, dtype=np.float64)
    played = [noise_ratio(ratios, np.uint64(3), step) for step in range(640)]
    assert played == [noise_ratio(ratios, np.uint64(3), step) for step in range(640)]
    follows = [(after - before) % 1000 == 1 for before, after in pairwise(played)]
    assert 630 <= sum(follows) < 639, "ten stretches, in order within"
    assert played != [noise_ratio(ratios, np.uint64(4), step) for step in range(640)]
    assert noise_ratio(NO_NOISE, np.uint64(3), 5) == 1.0
