"""How long an engine step takes, as a linear model of what is in the batch. Policies plan with it, the simulator runs on it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from burrstone.batching.errors import UsageError


@dataclass(frozen=True, slots=True)
class StepModel:
    """seconds = base + prefill tokens + decode sequences + KV tokens read + attention pairs, each times its cost.

    Attention pairs of a prefill chunk of m tokens after c tokens of context: m * (c + m / 2).
    """

    base_s: float
    prefill_token_s: float
    decode_seq_s: float
    kv_token_s: float
    attention_pair_s: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"step model: {name} must be a number >= 0, got {value}")

    def coefficients(self) -> np.ndarray:
        """[5] float64, in the order of the fields: what kernels take."""
        return np.array([getattr(self, field.name) for field in fields(self)], dtype=np.float64)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "StepModel":
        """The model of a calibration file. Raises UsageError for missing or unknown names."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise UsageError(f"step model: expected exactly {sorted(names)}, got {sorted(values)}")
        return cls(**{name: float(value) for name, value in values.items()})


# An 8B model in bfloat16 on one 96 GB GPU, fitted to public recordings of vLLM 0.19 (LLMServingSim's RTX PRO 6000 run).
DEFAULT_STEP_MODEL = StepModel(
    base_s=0.0136, prefill_token_s=3.75e-5, decode_seq_s=5.37e-5, kv_token_s=5.87e-8, attention_pair_s=1.97e-10
)
