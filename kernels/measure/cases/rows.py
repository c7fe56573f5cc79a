"""The kernels that quantize rows: K1 and K2."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burrstone.kernels.measure.bars import assert_rows, assert_same
from burrstone.kernels.measure.cases.case import (
    HIDDEN,
    INTERMEDIATE,
    Arguments,
    Cost,
    Goal,
    Kernel,
    Make,
    Ratios,
    Shape,
    clones,
)
from burrstone.kernels.measure.peers import Peer, compiled, in_turn, quantized_rows, vllm_op

_EPS = 1e-5
_EAGER, _COMPILED = "torch eager", "torch.compile"
_NORM_PAIR = "vLLM: fused_add_rms_norm, dynamic_scaled_int8_quant"
_NORM_FUSED = "vLLM: rms_norm_dynamic_per_token_quant"
_ACT_PAIR = "vLLM: silu_and_mul, dynamic_scaled_int8_quant"
_ROWS = (1024, 1, 8192, 64, 4096, 16)


def _norm_inputs(make: Make, shape: Shape) -> Arguments:
    m, n = shape["m"], shape["n"]
    return {
        "out": make.empty(m, n, dtype=torch.int8),
        "scales": make.empty(m, dtype=torch.float32),
        "total": make.empty(m, n),
        "x": make.normal(m, n),
        "weight": make.normal(n),
        "eps": _EPS,
        "residual": make.normal(m, n),
    }


def _sum(given: Arguments) -> Tensor:
    """Rounded to the model's type, as it is stored."""
    return (given["x"].float() + given["residual"].float()).to(given["x"].dtype)


def _norm_value(given: Arguments) -> Tensor:
    h = _sum(given).double()
    return h / (h.square().mean(dim=-1, keepdim=True) + _EPS).sqrt() * given["weight"].double()


def _norm_check(given: Arguments, found: Arguments) -> None:
    assert_rows(found["out"], found["scales"], _norm_value(given))
    assert_same("the sum", found["total"], _sum(given))


def _norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    h = x + residual
    normal = h.float() * torch.rsqrt(h.float().square().mean(dim=-1, keepdim=True) + _EPS) * weight.float()
    return quantized_rows(normal), h


def _norm_torch(function: Callable[..., Any]) -> Callable[[Arguments], Callable[[], Any]]:
    return lambda given: lambda: function(given["x"], given["weight"], given["residual"])[0]


def _norm_pair(given: Arguments) -> Callable[[], Any]:
    mine = clones(given)
    result = mine["out"], mine["scales"][:, None]
    # In place: x becomes what is quantized, so the next call reads what this one left; its magnitude is one either way.
    norm = vllm_op(
        "fused_add_rms_norm", **{name: mine[name] for name in ("residual", "weight")}, input=mine["x"], epsilon=_EPS
    )
    quantize = vllm_op(
        "dynamic_scaled_int8_quant", result=result[0], out=result[0], input=mine["x"], scale=result[1], scales=result[1]
    )
    return in_turn((norm, quantize), result)


def _norm_fused(given: Arguments) -> Callable[[], Any]:
    mine = clones(given)
    result = mine["out"], mine["scales"][:, None]
    call = vllm_op(
        "rms_norm_dynamic_per_token_quant",
        **{name: mine[name] for name in ("weight", "residual")},
        result=result[0],
        out=result[0],
        input=mine["x"],
        scale=result[1],
        scales=result[1],
        epsilon=_EPS,
        scale_ub=None,
    )
    return in_turn((call,), result)


def _norm_goal(shape: Shape) -> Goal:
    pair = 1.5 if shape["m"] >= 1024 else 1.4
    ratios: Ratios = {(_NORM_PAIR,): pair, (_NORM_FUSED,): 1.0, (_COMPILED,): 1.0}
    return Goal(ratios, roof=0.8 if shape["m"] >= 4096 else None)


def _norm_cost(shape: Shape) -> Cost:
    m, n = shape["m"], shape["n"]
    return Cost(num_bytes=7 * m * n + 4 * m + 2 * n, operations=8 * m * n)


RMS_NORM_INT8 = Kernel(
    name="rms_norm_int8",
    inputs=_norm_inputs,
    check=_norm_check,
    value=_norm_value,
    cost=_norm_cost,
    goal=_norm_goal,
    shapes=tuple({"m": m, "n": HIDDEN} for m in _ROWS),
    awkward=({"m": 3, "n": 576}, {"m": 17, "n": 129}, {"m": 2, "n": 16384}),
    tiny=({"m": 3, "n": 64}, {"m": 5, "n": 100}),
    peers=(
        Peer(_EAGER, _norm_torch(_norm)),
        Peer(_COMPILED, lambda given: _norm_torch(compiled(_norm))(given)),
        Peer(_NORM_PAIR, _norm_pair),
        Peer(_NORM_FUSED, _norm_fused),
    ),
)


def _act_inputs(make: Make, shape: Shape) -> Arguments:
    m, n = shape["m"], shape["n"]
    out, scales = make.empty(m, n, dtype=torch.int8), make.empty(m, dtype=torch.float32)
    return {"out": out, "scales": scales, "x": make.normal(m, 2 * n)}


def _act_value(given: Arguments) -> Tensor:
    gate, up = given["x"].double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


def _act(x: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = x.float().chunk(2, dim=-1)
    return quantized_rows(torch.nn.functional.silu(gate) * up)


def _act_pair(given: Arguments) -> Callable[[], Any]:
    mine = clones(given)
    middle, result = torch.empty_like(given["x"][:, : given["out"].shape[1]]), (mine["out"], mine["scales"][:, None])
    activate = vllm_op("silu_and_mul", result=middle, out=middle, input=given["x"])
    quantize = vllm_op(
        "dynamic_scaled_int8_quant", result=result[0], out=result[0], input=middle, scale=result[1], scales=result[1]
    )
    return in_turn((activate, quantize), result)


def _act_goal(shape: Shape) -> Goal:
    pair: Ratios = {(_ACT_PAIR,): 1.5} if shape["m"] >= 1024 else {}
    return Goal({**pair, (_COMPILED,): 1.0}, roof=0.8 if shape["m"] >= 4096 else None)


SILU_MUL_INT8 = Kernel(
    name="silu_mul_int8",
    inputs=_act_inputs,
    check=lambda given, found: assert_rows(found["out"], found["scales"], _act_value(given)),
    value=_act_value,
    cost=lambda shape: Cost(
        num_bytes=5 * shape["m"] * shape["n"] + 4 * shape["m"], operations=8 * shape["m"] * shape["n"]
    ),
    goal=_act_goal,
    shapes=tuple({"m": m, "n": INTERMEDIATE} for m in _ROWS),
    awkward=({"m": 3, "n": 1536}, {"m": 17, "n": 129}, {"m": 2, "n": 28672}),
    tiny=({"m": 3, "n": 64}, {"m": 5, "n": 100}),
    peers=(
        Peer(_EAGER, lambda given: lambda: _act(given["x"])),
        Peer(_COMPILED, lambda given: lambda: compiled(_act)(given["x"])),
        Peer(_ACT_PAIR, _act_pair),
    ),
)
