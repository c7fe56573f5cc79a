"""Fit the step model to the step log of an engine: what each token, sequence and KV entry costs there, how sure that is,
and how steps scatter around it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np

from burrstone.batching.core.kernel import kernel
from burrstone.batching.core.rng import uniform_at
from burrstone.batching.core.step_log import StepLoad, StepRecord
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.core.step_noise import MAX_RATIOS
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.fit.nnls import Floats, nnls, robust_nnls, robust_sigma

MIN_STEPS = 50
_NAMES = tuple(field.name for field in fields(StepModel))


class StepSamples(NamedTuple):
    """Timed steps, oldest first."""

    features: Floats  # [steps, 5], a one and then StepLoad's fields
    elapsed_s: Floats  # [steps]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fitted model with 95 % intervals, and the ratios of elapsed to modelled seconds, oldest first."""

    model: StepModel
    low: StepModel
    high: StepModel
    ratios: tuple[float, ...]
    steps: int

    @property
    def sigma(self) -> float:
        """How far a step is from its model, relative, outliers aside."""
        return robust_sigma(np.array(self.ratios))

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"ratios": list(self.ratios)}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """What to_dict() gave. Raises UsageError for anything else."""
        names = {field.name for field in fields(cls)}
        if set(given) != names:
            raise UsageError(f"calibration: expected exactly {sorted(names)}, got {sorted(given)}")
        models = {name: StepModel.from_dict(given[name]) for name in ("model", "low", "high")}
        return cls(**models, ratios=tuple(float(ratio) for ratio in given["ratios"]), steps=int(given["steps"]))


def samples_of(records: Iterable[StepRecord], every: int = 1) -> StepSamples:
    """The timed steps of a log, one in `every`."""
    if every < 1:
        raise UsageError(f"calibration: every must be >= 1, got {every}; 1 takes all steps")
    timed = [(record.load, record.elapsed_s) for record in records if record.load and record.elapsed_s is not None]
    chosen = timed[::every]
    features = np.array([_features(load) for load, _ in chosen], dtype=np.float64).reshape(-1, len(_NAMES))
    return StepSamples(features, np.array([elapsed_s for _, elapsed_s in chosen], dtype=np.float64))


def fit(samples: StepSamples, half_life_steps: float | None = None, seed: int = 0, rounds: int = 200) -> Calibration:
    """Robust non-negative least squares, with intervals by residual bootstrap of so many rounds.

    half_life_steps: how many steps ago a step counts half as much; None for all alike. Raises UsageError where the log
    is too short or holds no prefill or no decode.
    """
    features, elapsed_s = samples
    _check(samples, half_life_steps)
    size = len(elapsed_s)
    ages = np.arange(size - 1, -1, -1, dtype=np.float64)
    recency = np.ones(size) if half_life_steps is None else 0.5 ** (ages / half_life_steps)
    # Steps scatter in proportion to what they take, so the fit is to ratios: of a first fit's times, to begin with.
    first, _ = robust_nnls(features, elapsed_s, recency)
    scale_s = np.maximum(features @ first, 1e-9)
    rows, target = features / scale_s[:, None], elapsed_s / scale_s
    found, weights = robust_nnls(rows, target, recency)
    modelled = rows @ found
    low, high = _intervals(rows, modelled, (target - modelled) * weights / recency, recency, seed, rounds)
    ratios = elapsed_s / np.maximum(features @ found, 1e-9)
    return Calibration(_model(found), _model(low), _model(high), tuple(ratios[-MAX_RATIOS:].tolist()), size)


def _intervals(
    rows: Floats, modelled: Floats, residual: Floats, weights: Floats, seed: int, rounds: int
) -> tuple[Floats, Floats]:
    """2.5 % and 97.5 % of the coefficients over fits to the model plus residuals drawn again."""
    root = np.sqrt(weights)
    found = np.empty((rounds, rows.shape[1]))
    for index in range(rounds):
        drawn = residual[_draw(np.uint64(seed), index * len(residual), len(residual))]
        found[index] = nnls(rows * root[:, None], (modelled + drawn) * root)
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    return low, high


def _check(samples: StepSamples, half_life_steps: float | None) -> None:
    if half_life_steps is not None and not half_life_steps > 0:
        raise UsageError(f"calibration: half_life_steps must be > 0, got {half_life_steps}")
    if len(samples.elapsed_s) < MIN_STEPS:
        raise UsageError(
            f"calibration: needs {MIN_STEPS} timed steps, the log has {len(samples.elapsed_s)}; record a longer run"
        )
    for name, column in (("prefill_tokens", 1), ("decode_seqs", 2)):
        if not samples.features[:, column].any():
            raise UsageError(f"calibration: {name} is 0 in every step; record a run with both prefills and decodes")


def _features(load: StepLoad) -> tuple[float, ...]:
    return 1.0, load.prefill_tokens, load.decode_seqs, load.kv_tokens, load.attention_pairs


def _model(coefficients: Floats) -> StepModel:
    return StepModel(**dict(zip(_NAMES, coefficients.tolist(), strict=True)))


@kernel
def _draw(seed: np.uint64, position: int, size: int) -> np.ndarray:
    """So many numbers below size, from the stream's position on."""
    drawn = np.empty(size, np.int64)
    for index in range(size):
        drawn[index] = int(uniform_at(seed, np.uint64(position + index)) * size)
    return drawn
