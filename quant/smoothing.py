"""SmoothQuant: move the outliers of activations into the weights, where a scale a channel can bear them.

Xiao et al. 2022 (arXiv 2211.10438): y = (x / s) (W s)^T with s_j = max|x_j|^a / max|W_j|^(1-a). The division is folded
into whatever makes x. The strength `a` is given, or searched for each unit as the one that loses least on real tokens;
leaving the unit as it is takes part in the search, so that smoothing is never chosen where it hurts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from burrstone.quant.structure import Unit, gain_offset

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SMALLEST = 1e-5
# Of float32, in a norm whose gain is stored less 1.
_FOLD_NOISE = 1e-4


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a format leaves of what a linear module reads [..., K], and of its weight [N, K]."""

    activations: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]


@dataclass(slots=True)
class InputStats:
    """Of what a unit reads. absmax: [K]; sample: [tokens, K]; hessian: [K, K], the mean of x x^T, or None."""

    absmax: Tensor
    sample: Tensor
    hessian: Tensor | None

    def divide(self, factors: Tensor) -> None:
        """Channel j of the input is from now on divided by factors[j]."""
        self.absmax = self.absmax / factors
        self.sample = self.sample / factors
        if self.hessian is not None:
            self.hessian = self.hessian / factors / factors[:, None]


@torch.inference_mode()
def smooth(
    layer: nn.Module, unit: Unit, stats: InputStats, strength: float | None, rounding: Rounding, dtype: torch.dtype
) -> float:
    """Smooth one unit of a layer in place, and its statistics with it; returns the strength, 0 for left as it was.

    strength: None searches for the one that loses least by `rounding`. dtype: what norms' gains are stored in; the factors are chosen so that these are exact.
    """
    if unit.fold is None:
        return 0.0
    weights = [layer.get_submodule(name).weight for name in unit.linears]
    source = unit.fold.source.to(stats.absmax.device)
    producer = layer.get_submodule(unit.fold.producer)
    if strength is None:
        strength = _best_strength(weights, stats, source, rounding, lambda wanted: _usable(producer, wanted, dtype))
    if strength == 0.0:
        return 0.0
    usable = _usable(producer, _factors(weights, stats.absmax, source, strength), dtype)
    _divide_producer(producer, usable, dtype)
    factors = usable[source]
    for weight in weights:
        weight.mul_(factors)
    stats.divide(factors)
    return strength


@torch.inference_mode()
def fold_holds(layer: nn.Module, unit: Unit, run: Callable[[], Tensor]) -> bool:
    """Whether factors can go from what makes the unit's input into the unit without a change of what `run()` returns.

    Tried with powers of two, which round nothing: an activation between the two that is not linear shows, as does another
    reader of the same norm. False for a unit without a fold. The layer is as before afterwards.
    """
    if unit.fold is None:
        return False
    producer = layer.get_submodule(unit.fold.producer)
    weights = [layer.get_submodule(name).weight for name in unit.linears]
    source = unit.fold.source.to(weights[0].device)
    parts = [*producer.parameters(recurse=False), *weights]
    kept = [part.clone() for part in parts]
    before = run()
    try:
        factors = 2.0 ** (torch.arange(int(source.max()) + 1, device=source.device) % 3 - 1)
        _divide_producer(producer, factors, torch.float32)
        for weight in weights:
            weight.mul_(factors[source])
        change = run() - before
    finally:
        for part, value in zip(parts, kept, strict=True):
            part.copy_(value)
    # By element: a few massive activations would hide in a norm what happens to all the others.
    return bool((change.abs() <= _FOLD_NOISE * (before.abs() + before.abs().median())).all())


def _best_strength(
    weights: list[Tensor],
    stats: InputStats,
    source: Tensor,
    rounding: Rounding,
    usable: Callable[[Tensor], Tensor] = lambda factors: factors,
) -> float:
    """usable: the factors that a producer can really be divided by, for those that are wanted."""
    exact = [stats.sample @ weight.T for weight in weights]
    losses: dict[float, float] = {0.0: _loss(weights, stats.sample, exact, rounding)}
    for strength in STRENGTHS:
        factors = usable(_factors(weights, stats.absmax, source, strength))[source]
        losses[strength] = _loss([weight * factors for weight in weights], stats.sample / factors, exact, rounding)
    return min(losses, key=losses.__getitem__)


def _loss(weights: list[Tensor], tokens: Tensor, exact: list[Tensor], rounding: Rounding) -> float:
    rounded = rounding.activations(tokens)
    return sum(
        float((rounded @ rounding.weight(weight).T - product).square().sum())
        for weight, product in zip(weights, exact, strict=True)
    )


def _factors(weights: list[Tensor], absmax: Tensor, source: Tensor, strength: float) -> Tensor:
    """One factor for each row of the producer. Input channels that come from one row share its factor."""
    rows = int(source.max()) + 1
    largest_x = torch.zeros(rows, device=absmax.device).scatter_reduce(0, source, absmax, "amax")
    columns = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    largest_w = torch.zeros(rows, device=absmax.device).scatter_reduce(0, source, columns, "amax")
    factors = largest_x.clamp(min=_SMALLEST) ** strength / largest_w.clamp(min=_SMALLEST) ** (1 - strength)
    # A channel that nothing flows through, or that nobody reads, stays.
    return torch.where((largest_x > 0) & (largest_w > 0), factors.clamp(min=_SMALLEST), torch.ones_like(factors))


def _usable(producer: nn.Module, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """The factors that `producer` can be divided by, [rows], near those that are wanted.

    A norm's gain is stored in few bits. The quotient is rounded to them first, and the factor is what remains.
    """
    if isinstance(producer, nn.Linear):
        return factors
    offset = gain_offset(producer)
    gain = producer.weight + offset
    stored = (gain / factors - offset).to(dtype).float() + offset
    usable = (gain != 0) & (stored != 0) & torch.isfinite(stored)
    return torch.where(usable, gain / torch.where(usable, stored, 1.0), torch.ones_like(gain))


def _divide_producer(producer: nn.Module, factors: Tensor, dtype: torch.dtype) -> None:
    """Divide what `producer` makes by usable factors."""
    bias = getattr(producer, "bias", None)
    if isinstance(producer, nn.Linear):
        producer.weight.div_(factors[:, None])
    else:
        offset = gain_offset(producer)
        quotient = ((producer.weight + offset) / factors - offset).to(dtype).float()
        producer.weight.copy_(torch.where(factors == 1, producer.weight, quotient))
    if bias is not None:
        bias.div_(factors)
