"""How fast an engine serves, learnt from what it has served: any engine, without a look inside."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.core.step_time import prefill_seconds

# Each observation weighs this much less with every one that follows: the last fifty or so decide.
_FORGET = 0.98
_SEAT_FORGET = 0.95
_MIN_OBSERVATIONS = 8
# Features are brought to the same size, so that one small ridge settles what the data leave open.
_SCALE = np.array([1.0, 1e-3, 1e-2])
_RIDGE = 1e-4
_PRIOR_TOKENS = (256, 1024, 4096, 16384)
_PRIOR_CHUNK_TOKENS = 2048


class ServiceRate:
    """seconds = base_s + prefill_token_s * prefill tokens (own and ahead) + output_token_s * output tokens, each >= 0.

    Fitted by least squares with exponential forgetting. A StepModel, where one is known, stands in at first.
    """

    def __init__(self, model: StepModel | None = None) -> None:
        self._gram = np.zeros((3, 3))
        self._moment = np.zeros(3)
        self._observations = 0
        self._seat_sum_s = 0.0
        self._seat_weight = 0.0
        self.base_s = self.prefill_token_s = self.output_token_s = 0.0
        if model is not None:
            self._observe_model(model)

    @property
    def known(self) -> bool:
        """Whether enough was seen to predict from."""
        return self._observations >= _MIN_OBSERVATIONS

    @property
    def seat_s(self) -> float | None:
        """How long a sequence runs, on average; None before one has finished."""
        return self._seat_sum_s / self._seat_weight if self._seat_weight else None

    def observe(self, prefill_tokens: float, output_tokens: float, seconds: float) -> None:
        """So long after it went in, a request had so many tokens out. prefill_tokens: its own, and those before it."""
        x = np.array([1.0, prefill_tokens, output_tokens]) * _SCALE
        weight = 1.0 / (1.0 + output_tokens)  # each further token adds its own noise
        self._gram = _FORGET * self._gram + weight * np.outer(x, x)
        self._moment = _FORGET * self._moment + weight * seconds * x
        self._observations += 1
        self.base_s, self.prefill_token_s, self.output_token_s = (float(c) for c in self._solve() * _SCALE)

    def observe_seat(self, seconds: float) -> None:
        """A sequence that finished had run so long."""
        self._seat_sum_s = _SEAT_FORGET * self._seat_sum_s + seconds
        self._seat_weight = _SEAT_FORGET * self._seat_weight + 1.0

    def save(self) -> dict[str, Any]:
        return {
            "gram": self._gram.tolist(),
            "moment": self._moment.tolist(),
            "observations": self._observations,
            "seat": [self._seat_sum_s, self._seat_weight],
            "rates": [self.base_s, self.prefill_token_s, self.output_token_s],
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        self._gram = np.array(saved["gram"])
        self._moment = np.array(saved["moment"])
        self._observations = saved["observations"]
        self._seat_sum_s, self._seat_weight = saved["seat"]
        self.base_s, self.prefill_token_s, self.output_token_s = saved["rates"]

    def _solve(self) -> np.ndarray:
        """Least squares with no coefficient below zero: whoever would be is left out."""
        kept = [0, 1, 2]
        solution = np.zeros(3)
        while kept:
            gram = self._gram[np.ix_(kept, kept)]
            part = np.linalg.solve(gram + _RIDGE * np.trace(gram) * np.eye(len(kept)), self._moment[kept])
            if part.min() >= 0.0:
                solution[kept] = part
                break
            kept.pop(int(part.argmin()))
        return solution

    def _observe_model(self, model: StepModel) -> None:
        coefficients = model.coefficients()
        for tokens in _PRIOR_TOKENS:
            prefill_s = prefill_seconds(coefficients, 0, tokens, _PRIOR_CHUNK_TOKENS)
            self.observe(tokens, 0, prefill_s)
            self.observe(tokens, 16, prefill_s + 16 * (model.base_s + model.decode_seq_s))
