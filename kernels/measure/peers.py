"""Others that compute what a kernel does. One that is missing, or fails, is absent with its reason, never in silence."""

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Dynamo gives a function up after eight shapes, and would run it uncompiled.
_MOST_SHAPES = 64


class Absent(Exception):
    """Why a peer is not there."""


@dataclass(frozen=True, slots=True)
class Peer:
    """prepare: from a kernel's arguments, which it must leave as they are, to the call that is timed. The call returns a tensor
    or (int8, scales), and what it changes must not change what it computes next. graph: whether a CUDA graph can hold it."""

    name: str
    prepare: Callable[[dict[str, Any]], Callable[[], Any]]
    graph: bool = True


def missing(name: str, reason: str) -> Peer:
    """One that belongs into the comparison and cannot be here."""

    def prepare(_: dict[str, Any]) -> Callable[[], Any]:
        raise Absent(reason)

    return Peer(name, prepare)


@functools.cache
def compiled(function: Callable[..., Any], *, dynamic: bool = False) -> Callable[..., Any]:
    """By torch.compile, all of it or not at all; without a GPU by its first half, which needs no compiler."""
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    backend = "inductor" if torch.cuda.is_available() else "aot_eager"
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)


def imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise Absent(f"cannot import {module}: {_first_line(error)}") from error


def load_vllm(library: str | None) -> str | None:
    """Registers vLLM's ops. Returns why there are none."""
    if library is None:
        return "no --vllm-library was given"
    try:
        torch.ops.load_library(library)
    except Exception as error:  # noqa: BLE001  a library of another torch fails in many ways
        return f"{library} cannot be loaded: {_first_line(error)}"
    return None


def vllm_op(name: str, **known: Any) -> Callable[[], Any]:
    """A call of torch.ops._C.NAME. known: its arguments by the names of any of vLLM's versions; the schema of the one that is
    loaded says which of them it takes. Raises Absent."""
    try:
        overload = getattr(torch.ops._C, name).default
    except (AttributeError, RuntimeError) as error:
        raise Absent(f"torch.ops._C.{name} is not there") from error
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument in overload._schema.arguments:
        plain = argument.name.removesuffix("_or_none")
        if plain in known:
            value = known[plain]
        elif argument.has_default_value():
            continue
        elif isinstance(argument.type, torch.OptionalType):
            value = None
        else:
            raise Absent(f"torch.ops._C.{name} wants {argument.name}, which is not known here: {overload._schema}")
        if argument.kwarg_only or len(positional) < overload._schema.arguments.index(argument):
            keywords[argument.name] = value
        else:
            positional.append(value)
    return lambda: overload(*positional, **keywords)


def in_turn(calls: Sequence[Callable[[], Any]], result: Any) -> Callable[[], Any]:
    """One call after the other, which leave their result in `result`."""

    def run() -> Any:
        for call in calls:
            call()
        return result

    return run


def as_value(result: Any) -> Tensor:
    """float64 of what a peer returns."""
    if isinstance(result, tuple):
        rounded, scales = result
        return rounded.double() * scales.double().reshape(-1, 1)
    return result.double()


def quantized_rows(y: Tensor) -> tuple[Tensor, Tensor]:
    """In plain PyTorch, for peers: y float32 [rows, n] to (int8, scales)."""
    scales = y.abs().amax(dim=-1, keepdim=True).div(127).clamp(min=1e-10)
    return (y / scales).round().clamp(-127, 127).to(torch.int8), scales


def _first_line(error: Exception) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
