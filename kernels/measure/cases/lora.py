"""The kernel of adapters: K8."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burrstone.kernels.measure.bars import assert_relative, assert_same
from burrstone.kernels.measure.cases.case import HIDDEN, Arguments, Cost, Goal, Kernel, Make, Shape
from burrstone.kernels.measure.peers import Peer, missing

_VLLM = "vLLM: Triton shrink and expand"
# Every ninth token has no adapter.
_WITHOUT = 9
_SCALE = 0.5


def _inputs(make: Make, shape: Shape) -> Arguments:
    m, n, k, rank, count = (shape[name] for name in ("m", "n", "k", "rank", "adapters"))
    adapter_of = make.order(m) % count
    adapter_of[_WITHOUT - 1 :: _WITHOUT] = -1
    adapters, counts = torch.arange(-1, count, device=make.device), (adapter_of + 1).bincount(minlength=count + 1)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return {
        "y": make.normal(m, n),
        "x": make.normal(m, k),
        "a": make.normal(count, rank, k) / k**0.5,
        "b": make.normal(count, n, rank),
        "order": adapter_of.argsort(stable=True).to(torch.int32),
        "starts": starts.to(torch.int32),
        "adapters": adapters.to(torch.int32),
        "scale": _SCALE,
    }


def _adapter_of(given: Arguments) -> Tensor:
    """int64 [tokens], -1 for none."""
    lengths = given["starts"].long().diff()
    of = torch.empty(len(given["order"]), dtype=torch.int64, device=given["order"].device)
    of[given["order"].long()] = given["adapters"].long().repeat_interleave(lengths)
    return of


def _value(given: Arguments) -> Tensor:
    y, of = given["y"].double(), _adapter_of(given)
    for adapter in range(len(given["a"])):
        mine = of == adapter
        a, b = given["a"][adapter].double(), given["b"][adapter].double()
        y[mine] += given["x"][mine].double() @ a.T @ b.T * _SCALE
    return y


def _check(given: Arguments, found: Arguments) -> None:
    assert_relative(found["y"], _value(given), 6e-3)
    without = _adapter_of(given) < 0
    assert_same("a token without an adapter", found["y"][without], given["y"][without])


def _gathered(given: Arguments) -> Callable[[], Any]:
    """Each token reads its own adapter; where it has none, one of zeros."""
    of = _adapter_of(given)
    a, b = (torch.cat((given[name], torch.zeros_like(given[name][:1]))) for name in ("a", "b"))
    x, y = given["x"][:, :, None], given["y"][:, :, None]
    return lambda: torch.baddbmm(y, b[of], torch.bmm(a[of], x), alpha=_SCALE).squeeze(2)


def _cost(shape: Shape) -> Cost:
    m, n, k, rank, count = (shape[name] for name in ("m", "n", "k", "rank", "adapters"))
    used = min(m, count)
    return Cost(num_bytes=2 * used * rank * (n + k) + 2 * m * (2 * n + k), operations=2 * m * rank * (n + k))


def _shape(m: int, rank: int, adapters: int) -> Shape:
    return {"m": m, "n": 6144, "k": HIDDEN, "rank": rank, "adapters": adapters}


LORA = Kernel(
    name="lora",
    inputs=_inputs,
    check=_check,
    value=_value,
    cost=_cost,
    goal=lambda _: Goal({(_VLLM,): 1.25}),
    shapes=(_shape(64, 16, 8), _shape(1, 16, 1), _shape(64, 64, 32), _shape(16, 8, 4)),
    awkward=(
        {"m": 17, "n": 130, "k": 129, "rank": 8, "adapters": 3},
        {"m": 33, "n": 100, "k": 70, "rank": 20, "adapters": 12},
        {"m": 40, "n": 64, "k": 256, "rank": 64, "adapters": 1},
    ),
    tiny=({"m": 10, "n": 40, "k": 32, "rank": 4, "adapters": 3},),
    peers=(
        Peer("torch, gathered adapters", _gathered),
        missing(_VLLM, "is Triton code of vLLM's Python package, which is not imported here"),
    ),
    in_place=frozenset({"y"}),
)
