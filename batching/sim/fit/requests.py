"""Fit the step model to recorded requests where there is no step log: simulate them with other coefficients until first
tokens and token rates come out as recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from burrstone.batching.core.rng import Rng
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.fit.nnls import Floats, robust_nnls

# A first token is judged as if it took at least this long: below it, it says more about the host than about the steps.
_LEAST_TTFT_S = 0.05
# Beyond this a request counts as simply wrong, so that a few of them do not decide.
_MOST_ERROR = 0.5
_LEAST_SQUARES_ROUNDS = 20
_PRIOR_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Timings:
    """What clients saw, one entry a request; tpot_s is NaN for answers of one token."""

    ttft_s: Floats
    tpot_s: Floats

    def first(self, size: int) -> "Timings":
        """Of the first so many requests."""
        return Timings(self.ttft_s[:size], self.tpot_s[:size])


@dataclass(frozen=True, slots=True)
class Simulated:
    """Simulated timings and what they are made of: [requests, 5], seconds when multiplied by the coefficients."""

    timings: Timings
    ttft_parts: Floats
    tpot_parts: Floats


@dataclass(frozen=True, slots=True)
class RequestFit:
    """The best model that was found, and its error: mean relative error of TTFT plus that of TPOT."""

    model: StepModel
    error: float


def timing_error(simulated: Timings, recorded: Timings) -> float:
    """Mean relative error of TTFT plus that of TPOT, request by request."""
    ttft = np.abs(simulated.ttft_s - recorded.ttft_s) / np.maximum(recorded.ttft_s, _LEAST_TTFT_S)
    known = ~np.isnan(recorded.tpot_s)
    tpot = np.abs(simulated.tpot_s[known] / recorded.tpot_s[known] - 1)
    return float(np.minimum(ttft, _MOST_ERROR).mean() + (np.minimum(tpot, _MOST_ERROR).mean() if known.any() else 0.0))


def fit_to_requests(
    simulate: Callable[[StepModel], Simulated],
    recorded: Timings,
    start: StepModel,
    *,
    seed: int = 0,
    rounds: int = 300,
    on_progress: Callable[[float], None] | None = None,
) -> RequestFit:
    """Search for the coefficients whose simulation is nearest to what was recorded, from `start`.

    First least squares on what the simulated times were made of, simulated again and again; then random steps in the
    logarithms of the coefficients, longer after a success, shorter after a failure. Equal arguments give equal results.
    simulate: under a model; it may tell of more requests than were recorded, of which the first ones are compared.
    """
    if rounds < 1:
        raise UsageError(f"calibration: rounds must be >= 1, got {rounds}; 300 is usual")
    if np.any(start.coefficients() <= 0):
        raise UsageError("calibration: the search must start from coefficients above 0; give a rough guess of each")
    rng = Rng(seed)
    best = RequestFit(start, np.inf)
    model, reach = start, 0.3
    for index in range(_LEAST_SQUARES_ROUNDS + rounds):
        simulated = simulate(model)
        error = timing_error(simulated.timings.first(len(recorded.ttft_s)), recorded)
        if error < best.error:
            best = RequestFit(model, error)
            reach = min(reach * 1.3, 0.5)
        else:
            reach = max(reach * 0.97, 0.01)
        model = (
            _solved(model, start, simulated, recorded)
            if index < _LEAST_SQUARES_ROUNDS
            else _moved(best.model, reach, rng)
        )
        if on_progress is not None:
            on_progress((index + 1) / (_LEAST_SQUARES_ROUNDS + rounds))
    return best


def _solved(model: StepModel, prior: StepModel, simulated: Simulated, recorded: Timings) -> StepModel:
    """Half way to the coefficients that would explain the recorded times, had the steps been as simulated."""
    size = len(recorded.ttft_s)
    ttft_s, known = np.maximum(recorded.ttft_s, _LEAST_TTFT_S), ~np.isnan(recorded.tpot_s)
    tpot_s = recorded.tpot_s[known]
    # What the recording leaves open, such as sequences against their KV where all are about as long, stays near prior.
    towards = _PRIOR_WEIGHT * np.diag(1.0 / prior.coefficients())
    rows = [
        simulated.ttft_parts[:size] / ttft_s[:, None],
        simulated.tpot_parts[:size][known] / tpot_s[:, None],
        towards,
    ]
    target = np.concatenate([recorded.ttft_s / ttft_s, np.ones(len(tpot_s)), np.full(len(towards), _PRIOR_WEIGHT)])
    found, _ = robust_nnls(np.concatenate(rows), target, np.ones(len(target)))
    return StepModel(*(0.5 * (model.coefficients() + found)).tolist())


def _moved(model: StepModel, reach: float, rng: Rng) -> StepModel:
    """Some of the coefficients, each times e to the power of about a Gaussian of this reach."""
    coefficients = model.coefficients()
    for index in range(len(coefficients)):
        gaussian = 2.0 * (rng.uniform() + rng.uniform() + rng.uniform() - 1.5)
        if rng.uniform() < 0.6:
            coefficients[index] *= np.exp(reach * gaussian)
    return StepModel(*coefficients.tolist())
