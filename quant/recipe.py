"""What is to be done to a model: a frozen, checked value that is written into the checkpoint and decides its bytes."""

import fnmatch
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from burrstone.quant.errors import QuantizeError
from burrstone.quant.formats import KV_INT8, SCHEMES, Scheme
from burrstone.quant.rounding import GRANULARITIES, OBSERVERS, Granularity, Observer, weight_scale

_DAMPENING = 0.01
METHODS = ("rtn", "smoothquant", "gptq", "smoothquant+gptq")


@dataclass(frozen=True, slots=True)
class Recipe:
    """schemes: names joined by "+", at most one for weights. strength: of smoothing; None is searched for each unit.

    keep: patterns (`*.down_proj`, `model.layers.0.*`) of modules that stay as they are. Raises QuantizeError.
    """

    schemes: str = "w8a8-int8"
    method: str = "smoothquant+gptq"
    strength: float | None = None
    observer: Observer = "absmax"
    granularity: Granularity = "per-channel"
    dampening: float = _DAMPENING
    keep: tuple[str, ...] = ()
    quantize_lm_head: bool = False

    def __post_init__(self) -> None:
        known = [*SCHEMES, KV_INT8]
        names = self.schemes.split("+")
        if unknown := [name for name in names if name not in known]:
            raise QuantizeError(f"scheme {unknown[0]!r} is not known; there are {', '.join(known)}")
        if len(names) != len(set(names)) or len([name for name in names if name != KV_INT8]) > 1:
            raise QuantizeError(f"scheme {self.schemes!r}: at most one scheme for weights, and `+{KV_INT8}` beside it")
        if self.method not in METHODS:
            raise QuantizeError(f"method {self.method!r} is not known; there are {', '.join(METHODS)}")
        choices: dict[str, tuple[str, ...]] = {"observer": OBSERVERS, "granularity": GRANULARITIES}
        for name, values in choices.items():
            if (value := getattr(self, name)) not in values:
                raise QuantizeError(f"{name} is one of {', '.join(values)}, got {value!r}")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise QuantizeError(f"smoothing strength lies between 0 and 1, got {self.strength}")
        if not 0 < self.dampening <= 1:
            raise QuantizeError(f"dampening lies above 0 and at most at 1, got {self.dampening}")
        if self.scheme is not None and self.granularity not in self.scheme.granularities:
            raise QuantizeError(f"{self.scheme.name} is per channel; engines read it no other way")
        self._refuse_idle_settings()

    def _refuse_idle_settings(self) -> None:
        if self.strength is not None and not (self.scheme and self.smooths):
            raise QuantizeError(
                f"strength is of smoothing, and does nothing with {self.schemes} by {self.method}; leave it out, or choose "
                "method smoothquant"
            )
        if self.dampening != _DAMPENING and not (self.scheme and self.compensates):
            raise QuantizeError(
                f"dampening is GPTQ's, and does nothing with {self.schemes} by {self.method}; leave it out, or choose method "
                "gptq"
            )
        if self.scheme is None and (self.keep or self.quantize_lm_head or self.observer != "absmax"):
            raise QuantizeError(f"{self.schemes} changes no weights: keep, quantize_lm_head and observer do nothing")
        if self.quantize_lm_head and self.keeps("lm_head"):
            raise QuantizeError("quantize_lm_head and keep contradict each other about lm_head")

    @property
    def scheme(self) -> Scheme | None:
        """How weights are stored; None where only the KV cache is concerned."""
        return next((SCHEMES[name] for name in self.schemes.split("+") if name != KV_INT8), None)

    @property
    def kv_int8(self) -> bool:
        return KV_INT8 in self.schemes.split("+")

    @property
    def smooths(self) -> bool:
        return self.method.startswith("smoothquant")

    @property
    def compensates(self) -> bool:
        """Whether GPTQ rounds."""
        return self.method.endswith("gptq")

    @property
    def needs_data(self) -> bool:
        return self.scheme is not None and self.method != "rtn"

    def keeps(self, module: str) -> bool:
        return any(fnmatch.fnmatchcase(module, pattern) for pattern in self.keep)

    def scale_of(self, weight: Tensor) -> Tensor:
        """The scales of a weight [N, K], as they will be stored; float32 [N, 1] or [1, 1]."""
        scale = weight_scale(weight, self.observer, self.granularity)
        return scale if self.scheme is None else scale.to(self.scheme.scale_dtype).float()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
