"""K8: adapters of many requests."""

import math

import pytest
import torch
from torch import Tensor

from burrstone.kernels.measure.bars import relative
from burrstone.kernels.ops.lora import launch, reference


def sorted_by(adapter_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(order, starts, adapters) of tokens with these adapters."""
    order = adapter_of.argsort(stable=True).to(torch.int32)
    adapters, counts = adapter_of.unique(return_counts=True)
    starts = torch.cat((torch.zeros(1), counts.cumsum(0))).to(torch.int32)
    return order, starts, adapters.to(torch.int32)


def inputs(tokens: int, n: int, k: int, rank: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens * n + rank)
    y, x = torch.randn(tokens, n).bfloat16(), torch.randn(tokens, k).bfloat16()
    a, b = torch.randn(count, rank, k).bfloat16() / k**0.5, torch.randn(count, n, rank).bfloat16()
    return y, x, a, b, torch.randint(-1, count, (tokens,))


def exact(y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter_of: Tensor, scale: float) -> Tensor:
    out = y.double()
    for token, adapter in enumerate(adapter_of.tolist()):
        if adapter >= 0:
            out[token] += b[adapter].double() @ (a[adapter].double() @ x[token].double()) * scale
    return out


@pytest.mark.parametrize(
    ("tokens", "n", "k", "rank", "count"),
    [(1, 1, 1, 1, 1), (17, 130, 129, 8, 3), (40, 64, 256, 64, 1), (33, 100, 70, 20, 12)],
)
@pytest.mark.parametrize("run", [launch, reference])
def test_adapters(run: object, tokens: int, n: int, k: int, rank: int, count: int) -> None:
    y, x, a, b, adapter_of = inputs(tokens, n, k, rank, count)
    wanted = exact(y, x, a, b, adapter_of, 0.5)
    untouched = y[adapter_of < 0].clone()
    assert callable(run)
    run(y, x, a, b, *sorted_by(adapter_of), 0.5)
    assert relative(y, wanted) < 6e-3
    assert torch.equal(y[adapter_of < 0], untouched)


def test_rows_may_be_strided_and_others_adapters_are_not_read() -> None:
    y, x, a, b, _ = inputs(5, 64, 64, 16, 3)
    a[1], b[1] = math.nan, math.nan
    wide = torch.full((5, 128), math.nan).bfloat16()
    wide[:, :64] = x
    adapter_of = torch.tensor([2, 0, 2, 2, 0])
    wanted = exact(y, x, a, b, adapter_of, 1.0)
    launch(y, wide[:, :64], a, b, *sorted_by(adapter_of), 1.0)
    assert relative(y, wanted) < 6e-3


def test_tokens_in_another_order_get_the_same() -> None:
    y, x, a, b, adapter_of = inputs(20, 64, 64, 16, 3)
    turned = torch.randperm(20)
    other = y[turned].clone()
    launch(other, x[turned], a, b, *sorted_by(adapter_of[turned]), 1.0)
    launch(y, x, a, b, *sorted_by(adapter_of), 1.0)
    assert torch.equal(other, y[turned])
