"""How a decoder layer's linear modules hang together, found by running it once.

A unit is the linear modules that read the same tensor (query, key and value; gate and up). Engines fuse them, so they
share one decision: smoothed alike, and all INT8 or all left alone. A fold is a place where a factor a channel can be
taken out of a unit's input and put into its weights without changing what the layer computes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Fold:
    """`producer` makes the unit's input. Channel j of the input is row source[j] of its weight; source: [K] int64."""

    producer: str
    source: Tensor


@dataclass(frozen=True, slots=True)
class Unit:
    """`linears`: names inside the layer, in the layer's order. `fold` is None where nothing can be taken out."""

    linears: tuple[str, ...]
    fold: Fold | None

    @property
    def name(self) -> str:
        return self.linears[0]


def find_units(layer: nn.Module, run: Any) -> list[Unit]:
    """`run()` calls the layer once, on any input. Units come in the order in which they are reached."""
    readers: list[tuple[Tensor, list[str]]] = []
    made_by: list[tuple[Tensor, str]] = []
    handles = []

    def read(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            for tensor, names in readers:
                if tensor is arguments[0]:
                    names.append(name)
                    return
            readers.append((arguments[0], [name]))

        return hook

    def made(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            made_by.append((output, name))

        return hook

    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(read(name)))
        elif is_norm(module):
            handles.append(module.register_forward_hook(made(name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [Unit(tuple(names), _fold(layer, tensor, names, made_by)) for tensor, names in readers]


def is_norm(module: nn.Module) -> bool:
    """A normalization with one gain a channel."""
    gain = getattr(module, "weight", None)
    return "Norm" in type(module).__name__ and isinstance(gain, Tensor) and gain.dim() == 1


def gain_offset(norm: nn.Module) -> float:
    """1 for a norm that multiplies by 1 + weight (as Gemma's do), 0 for one that multiplies by weight: asked by trying."""
    weight = norm.weight
    x = torch.linspace(-1.0, 2.0, weight.numel(), device=weight.device)[None]
    kept = weight.data
    try:
        weight.data = torch.zeros_like(kept)
        bias = getattr(norm, "bias", None)
        zero = norm(x) - (0.0 if bias is None else bias)
    finally:
        weight.data = kept
    return 0.0 if bool((zero.abs() < 1e-6).all()) else 1.0


def _fold(layer: nn.Module, tensor: Tensor, names: list[str], made_by: list[tuple[Tensor, str]]) -> Fold | None:
    for output, norm in made_by:
        if output is tensor:
            return Fold(norm, torch.arange(tensor.shape[-1]))
    if len(names) != 1:
        return None
    parent, _, own = names[0].rpartition(".")
    return _linear_fold(layer, names[0], f"{parent}.{'up_proj' if own == 'down_proj' else 'v_proj'}", own)


def _linear_fold(layer: nn.Module, reader: str, producer: str, own: str) -> Fold | None:
    """down_proj reads act(gate) * up, o_proj the attention's mix of v: both linear in what up_proj and v_proj make."""
    modules = dict(layer.named_modules())
    if own not in ("down_proj", "o_proj") or not isinstance(modules.get(producer), nn.Linear):
        return None
    columns, rows = modules[reader].in_features, modules[producer].out_features
    if own == "down_proj":
        return Fold(producer, torch.arange(columns)) if columns == rows else None
    head_dim = getattr(modules[reader.rpartition(".")[0]], "head_dim", None)
    if not isinstance(head_dim, int) or rows % head_dim or columns % rows:
        return None
    # Grouped-query attention: several query heads read one value head.
    channel = torch.arange(columns)
    head = channel // head_dim // (columns // rows)
    return Fold(producer, head * head_dim + channel % head_dim)
