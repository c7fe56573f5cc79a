"""Quantizing one decoder layer: watch what flows through it, smooth, round, and say how much was lost."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from burrstone.quant.errors import BadCheckpoint, QuantizeError
from burrstone.quant.gptq import gptq
from burrstone.quant.linears import W8A16Linear
from burrstone.quant.recipe import Recipe
from burrstone.quant.rounding import quantize, round_trip
from burrstone.quant.smoothing import InputStats, Rounding, fold_holds, smooth
from burrstone.quant.streamed import Batch, StreamedModel, replace_module
from burrstone.quant.structure import Unit, find_units

_SAMPLE_TOKENS = 512
_PROBE_TOKENS = 16
# Smoothing only moves factors about: what the layer computes may change by float32's rounding and no more.
_FOLD_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class UnitReport:
    """loss: mean squared error of the unit's output over its mean square, on tokens of the calibration set.

    Without calibration it is the weights' own. strength: of smoothing, 0 for none. dampening: GPTQ's, None without.
    """

    modules: list[str]
    loss: float
    strength: float = 0.0
    dampening: float | None = None
    kept: bool = False


@dataclass(slots=True)
class LayerResult:
    """tensors: the layer's, to be stored, by their names inside the layer. unrounded: the INT8 modules' weights before
    rounding, for taking a decision back. The layer itself computes as the stored one will."""

    tensors: dict[str, Tensor]
    unrounded: dict[str, Tensor]
    units: list[UnitReport] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        return {"units": [asdict(unit) for unit in self.units]}


@torch.inference_mode()
def quantize_layer(
    model: StreamedModel,
    layer: nn.Module,
    index: int,
    batches: list[Batch],
    recipe: Recipe,
    tick: Callable[[], None] = lambda: None,
) -> LayerResult:
    """`layer` is changed in place and can be applied afterwards. `batches` may be empty for a recipe without data.

    Raises BadCheckpoint for a layer that computes no numbers, QuantizeError where smoothing would change it.
    """
    scheme = recipe.scheme
    stored = {name: tensor.dtype for name, tensor in model.checkpoint.tensors(model.prefix(index)).items()}
    if scheme is None:
        raise QuantizeError(f"{recipe.schemes} changes no weights")
    units = _units(model, layer, index, batches, smooths=recipe.smooths)
    for name in (name for unit in units for name in unit.linears):
        check_finite(layer.get_submodule(name).weight, f"the weight of {model.prefix(index)}{name}")
    stats = _observe(model, layer, index, batches, units, recipe, tick) if batches else {}
    strengths = _smooth_all(model, layer, index, batches, units, stats, recipe, stored)
    _round_to_stored(layer, stored, {f"{name}.weight" for unit in units for name in unit.linears})
    result = LayerResult({}, {})
    rounded: dict[str, W8A16Linear] = {}
    for unit in units:
        kept = any(recipe.keeps(f"{model.prefix(index)}{name}") for name in unit.linears)
        losses, dampening = [], None
        for name in unit.linears:
            linear = layer.get_submodule(name)
            if kept:
                continue
            seen = stats.get(unit.name)
            scale = recipe.scale_of(linear.weight)
            if recipe.compensates and seen is not None and seen.hessian is not None:
                weight, dampening = gptq(linear.weight, scale, seen.hessian, dampening=recipe.dampening)
            else:
                weight = quantize(linear.weight, scale)
            rounded[name] = scheme.linear(weight, scale, linear.bias).to(linear.weight.device)
            losses.append(_loss(linear, rounded[name], seen, scale))
            parts = scheme.encode(weight.cpu(), scale.cpu())
            result.tensors |= {f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in parts.items()}
            result.unrounded[f"{name}.weight"] = linear.weight.to(stored[f"{name}.weight"]).cpu()
        loss = sum(losses) / len(losses) if losses else 0.0
        check_finite(torch.tensor(loss), f"what {model.prefix(index)}{unit.name} makes")
        result.units.append(UnitReport(list(unit.linears), loss, strengths.get(unit.name, 0.0), dampening, kept))
    for name, tensor in layer.state_dict().items():
        if name not in result.unrounded:
            result.tensors[name] = tensor.to(stored[name]).cpu().contiguous()
    for name, module in rounded.items():
        replace_module(layer, name, module)
    return result


def check_finite(values: Tensor, what: str) -> None:
    """Raises BadCheckpoint for values that nothing could be computed with."""
    if not bool(torch.isfinite(values).all()):
        raise BadCheckpoint(f"{what} holds values that are no numbers (inf or nan); the checkpoint is damaged")


def _round_to_stored(layer: nn.Module, stored: dict[str, torch.dtype], weights: set[str]) -> None:
    """Gains and biases are stored in few bits; from here on they are what will be read. Not yet: the linear `weights`."""
    for name, parameter in layer.named_parameters():
        if name not in weights:
            parameter.copy_(parameter.to(stored[name]).float())


def _units(model: StreamedModel, layer: nn.Module, index: int, batches: list[Batch], *, smooths: bool) -> list[Unit]:
    """The layer's units, found by running it on a few tokens, with those folds only that hold."""
    tokens = batches[0].tokens[:1, :_PROBE_TOKENS] if batches else torch.zeros(1, 4, dtype=torch.int64)
    probe = model.embed(tokens)
    if batches:
        probe.hidden = batches[0].hidden[:1, : tokens.shape[1]]

    def run() -> Tensor:
        return model.apply(layer, index, probe)

    units = find_units(layer, run)
    return [unit if not smooths or fold_holds(layer, unit, run) else replace(unit, fold=None) for unit in units]


def _observe(
    model: StreamedModel,
    layer: nn.Module,
    index: int,
    batches: list[Batch],
    units: list[Unit],
    recipe: Recipe,
    tick: Callable[[], None],
) -> dict[str, InputStats]:
    """What each unit reads, over all calibration tokens."""
    found: dict[str, InputStats] = {}
    each = max(1, _SAMPLE_TOKENS // len(batches))
    num_tokens = sum(batch.tokens.numel() for batch in batches)

    def watch(unit: Unit) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].reshape(-1, arguments[0].shape[-1])
            sample = x[:: max(1, len(x) // each)][:each].clone()
            if unit.name not in found:
                hessian = x.new_zeros(x.shape[1], x.shape[1]) if recipe.compensates else None
                found[unit.name] = InputStats(x.abs().amax(dim=0), sample, hessian)
            else:
                seen = found[unit.name]
                seen.absmax = torch.maximum(seen.absmax, x.abs().amax(dim=0))
                seen.sample = torch.cat([seen.sample, sample])
            hessian = found[unit.name].hessian
            if hessian is not None:
                hessian.addmm_(x.T, x, alpha=1 / num_tokens)

        return layer.get_submodule(unit.name).register_forward_pre_hook(hook)

    handles = [watch(unit) for unit in units]
    try:
        for batch in batches:
            model.apply(layer, index, batch)
            tick()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _smooth_all(
    model: StreamedModel,
    layer: nn.Module,
    index: int,
    batches: list[Batch],
    units: list[Unit],
    stats: dict[str, InputStats],
    recipe: Recipe,
    stored: dict[str, torch.dtype],
) -> dict[str, float]:
    """Unit -> strength. Last units first: a fold into up_proj changes the weights that its own unit is smoothed by."""
    if not recipe.smooths:
        return {}
    before = model.apply(layer, index, batches[0])
    rounding = _rounding(recipe)
    strengths = {}
    for unit in reversed(units):
        # What is to stay as it is neither takes factors nor gives them.
        touched = (*unit.linears, *((unit.fold.producer,) if unit.fold else ()))
        if any(recipe.keeps(f"{model.prefix(index)}{name}") for name in touched):
            continue
        dtype = stored[f"{unit.fold.producer}.weight"] if unit.fold else torch.float32
        strengths[unit.name] = smooth(layer, unit, stats[unit.name], recipe.strength, rounding, dtype)
    change = float((model.apply(layer, index, batches[0]) - before).norm() / before.norm())
    if not change <= _FOLD_TOLERANCE:
        raise QuantizeError(
            f"layer {index}: smoothing changes what it computes by {change:.1e}; this architecture cannot be smoothed so, "
            "use --method gptq or rtn"
        )
    return strengths


def _rounding(recipe: Recipe) -> Rounding:
    activations = nn.Identity() if recipe.scheme is None else recipe.scheme.linear.activations
    return Rounding(activations, lambda weight: round_trip(weight, recipe.scale_of(weight)))


def _loss(linear: nn.Module, rounded: W8A16Linear, seen: InputStats | None, scale: Tensor) -> float:
    weight: Tensor = linear.weight
    if seen is None:
        return float((round_trip(weight, scale) - weight).square().sum() / weight.square().sum().clamp(min=1e-30))
    exact = seen.sample @ weight.T
    got = rounded.activations(seen.sample) @ rounded.weight.T
    return float((got - exact).square().sum() / exact.square().sum().clamp(min=1e-30))
