"""K3: W8A8 product for few tokens."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from burrstone.kernels.measure.bars import assert_bfloat16, relative
from burrstone.kernels.ops.gemm_w8a8_decode import launch, reference
from burrstone.kernels.select import Tile
from burrstone.kernels.tall import Workspace


def inputs(tokens: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens * n + k)
    a = torch.randint(-127, 128, (tokens, k), dtype=torch.int8)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return a, torch.rand(tokens) + 0.01, weight, torch.rand(n) / 127, torch.randn(n, dtype=torch.bfloat16)


def run(a: Tensor, a_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, tile: Tile) -> Tensor:
    """What was in the outputs before must not matter."""
    tokens, n = a.shape[0], weight.shape[0]
    out = torch.full((tokens, n), math.nan, dtype=torch.bfloat16)
    workspace = Workspace.of(tile, tokens, n, torch.int32, a.device)
    workspace.parts.fill_(2**31 - 1)
    for _ in range(2):
        launch(out, a, a_scales, weight, weight_scales, bias, workspace.parts, workspace.arrivals, tile)
        assert not workspace.arrivals.any(), "the next launch would count on"
    return out


def exact(a: Tensor, a_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None) -> Tensor:
    y = (a.double() @ weight.double().T) * a_scales.double()[:, None] * weight_scales.double()[None, :]
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize(
    ("tokens", "n", "k"), [(1, 1, 1), (1, 64, 128), (15, 65, 127), (16, 192, 400), (17, 63, 129), (65, 70, 96)]
)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_product(tokens: int, n: int, k: int, splits: int, has_bias: bool) -> None:
    a, a_scales, weight, weight_scales, bias = inputs(tokens, n, k)
    given = (a, a_scales, weight, weight_scales, bias if has_bias else None)
    assert_bfloat16(run(*given, Tile(16, 64, 64, splits)), exact(*given))


def test_every_split_gives_the_same_bits() -> None:
    given = inputs(5, 100, 1000)
    found = [run(*given, Tile(16, 64, 128, splits)) for splits in (1, 2, 4, 8, 16)]
    assert all(torch.equal(each, found[0]) for each in found)


def test_large_sums_are_exact() -> None:
    """They cancel: what float32 would have lost on the way is all that is left."""
    torch.manual_seed(3)
    half = torch.randint(120, 128, (1, 8192), dtype=torch.int8)
    a, weight = torch.cat((half, -half.flip(1)), dim=1), torch.randint(120, 128, (64, 16384), dtype=torch.int8)
    one, tile = torch.ones(1), Tile(16, 64, 256, 2)
    out = torch.empty(1, 64)
    workspace = Workspace.of(tile, 1, 64, torch.int32, a.device)
    launch(out, a, one, weight, torch.ones(64), None, workspace.parts, workspace.arrivals, tile)
    assert torch.equal(out, (a.double() @ weight.double().T).float())


def test_a_poisoned_row_is_seen() -> None:
    a, a_scales, weight, weight_scales, _ = inputs(3, 64, 128)
    a_scales[1] = math.nan
    out = run(a, a_scales, weight, weight_scales, None, Tile(16, 64, 64, 2))
    assert out.isnan().all(dim=1).tolist() == [False, True, False] and out[::2].isfinite().all()


def test_nothing() -> None:
    a, a_scales, weight, weight_scales, bias = inputs(3, 64, 128)
    assert run(a[:0], a_scales[:0], weight, weight_scales, bias, Tile(16, 64, 64)).shape == (0, 64)


def test_the_reference_is_the_same() -> None:
    given = inputs(5, 100, 1000)
    out = torch.empty(5, 100)
    reference(out, *given, torch.empty(0), torch.empty(0))
    assert relative(out, exact(*given)) < 1e-6


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 65),
    n=st.integers(1, 150),
    k=st.integers(1, 300),
    splits=st.integers(1, 5),
    block_k=st.sampled_from([32, 64, 128]),
    has_bias=st.booleans(),
)
def test_any_shape(tokens: int, n: int, k: int, splits: int, block_k: int, has_bias: bool) -> None:
    a, a_scales, weight, weight_scales, bias = inputs(tokens, n, k)
    arguments = (a, a_scales, weight, weight_scales, bias if has_bias else None)
    assert_bfloat16(run(*arguments, Tile(16, 64, block_k, splits)), exact(*arguments))
