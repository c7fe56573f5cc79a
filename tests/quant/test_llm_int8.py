"""LLM.int8() against float64, against bitsandbytes itself, and the promises that a served batch needs."""

import logging

import bitsandbytes
import pytest
import torch
from torch import Tensor

from burrstone.quant.llm_int8 import (
    _product_on_cpu,
    _product_on_gpu,
    dequantize,
    int8_matmul,
    llm_int8_linear,
    quantize_tokens,
)

THRESHOLD = 6.0
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What rounding y to its type may add (and in float32 the arithmetic before it), of y itself.
ROUNDING = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def weights(num_rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """As bitsandbytes stores them: int8 [N, K], absmax [N]."""
    dense = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed)) * 0.05
    absmax = dense.abs().amax(dim=1)
    return torch.round(dense * 127 / absmax[:, None]).to(torch.int8), absmax


def tokens(num_tokens: int, width: int, outlier: float = 20.0, seed: int = 1) -> Tensor:
    """[M, K] with three columns that are `outlier` times as large as the others."""
    x = torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(seed))
    x[:, [1, width // 2, width - 1]] *= outlier
    return x


def exact(x: Tensor, weight: Tensor, absmax: Tensor) -> Tensor:
    return x.double() @ (weight.double() * (absmax.double() / 127)[:, None]).T


def theirs(x: Tensor, weight: Tensor, absmax: Tensor) -> Tensor:
    state = bitsandbytes.MatmulLtState()
    state.CB, state.SCB, state.threshold = weight, absmax, THRESHOLD
    state.has_fp16_weights = state.is_training = False
    return bitsandbytes.matmul(x.clone(), weight, state=state)


def error(y: Tensor, reference: Tensor) -> float:
    return float((y.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outlier", [1.0, 20.0, 2000.0])
@pytest.mark.parametrize("shape", [(1, 64, 32), (2, 577, 95), (19, 65, 1), (33, 128, 96)])
def test_every_output_is_within_half_a_step_of_each_input(
    shape: tuple[int, int, int], outlier: float, dtype: torch.dtype
) -> None:
    num_tokens, width, num_rows = shape
    weight, absmax = weights(num_rows, width)
    x = tokens(num_tokens, width, outlier).to(dtype)
    bias = torch.randn(num_rows).to(dtype)
    reference = exact(x, weight, absmax) + bias.double()
    _, _, step = quantize_tokens(x, THRESHOLD)
    rounding = 0.5 * step.double() * dequantize(weight, absmax).double().abs().sum(dim=1)
    allowed = rounding * (1 + 1e-4) + ROUNDING[dtype] * (reference.abs() + rounding) + 1e-6
    y = llm_int8_linear(x, weight, absmax, THRESHOLD, bias)
    assert y.dtype is dtype
    assert ((y.double() - reference).abs() <= allowed).all()


@pytest.mark.parametrize("outlier", [1.0, 20.0, 300.0])
def test_it_is_as_exact_as_bitsandbytes(outlier: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")
    weight, absmax = weights(95, 577)
    for dtype, slack in ((torch.float32, 1.05), (torch.bfloat16, 1.05)):
        x = tokens(17, 577, outlier).to(dtype)
        reference = exact(x, weight, absmax)
        ours = error(llm_int8_linear(x, weight, absmax, THRESHOLD), reference)
        assert ours <= error(theirs(x, weight, absmax), reference) * slack
        assert ours < 0.01


def test_without_outliers_it_is_bitsandbytes_to_the_last_rounding(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")
    weight, absmax = weights(64, 256)
    x = tokens(9, 256, 1.0).clamp(-5.9, 5.9).half()
    # Both constants of theirs (127 * 127 and 127) are rounded to seven digits, and they compute in float16.
    torch.testing.assert_close(
        llm_int8_linear(x, weight, absmax, THRESHOLD), theirs(x, weight, absmax), rtol=2e-3, atol=4e-3
    )


def test_outliers_are_what_plain_int8_loses() -> None:
    weight, absmax = weights(96, 512)
    x = tokens(8, 512, 60.0)
    reference = exact(x, weight, absmax)
    plain = error(llm_int8_linear(x, weight, absmax, 0.0), reference)
    assert error(llm_int8_linear(x, weight, absmax, THRESHOLD), reference) < plain / 10


def test_a_tokens_result_does_not_depend_on_its_neighbours() -> None:
    """Bit for bit: a batch holds tokens of other people's requests."""
    weight, absmax = weights(48, 192)
    x = tokens(11, 192).bfloat16()
    x[3:6] = 0.1  # Some tokens without an outlier.
    whole = llm_int8_linear(x, weight, absmax, THRESHOLD)
    for at in range(len(x)):
        assert torch.equal(llm_int8_linear(x[at : at + 1], weight, absmax, THRESHOLD)[0], whole[at])


def test_values_on_the_grid_come_back_exactly() -> None:
    """The largest inlier sets the step; an outlier is any multiple of it, up to both halves' ends."""
    q = torch.tensor([[127.0, -127, 0, 1, 128, -129, 32639, -32639, 255, -256]])
    low, high, step = quantize_tokens(q * 0.01, 127.5 * 0.01)
    assert high is not None
    assert torch.equal(256 * high.int() + low.int(), q.int())
    torch.testing.assert_close(step, torch.tensor([[0.01]]))


@pytest.mark.parametrize("threshold", [0.0, THRESHOLD])
def test_tokens_of_zeros_give_the_bias_and_bad_values_stay_in_their_token(threshold: float) -> None:
    weight, absmax = weights(16, 64)
    x = torch.zeros(4, 64)
    x[1, 5], x[2, 5] = torch.nan, torch.inf
    bias = torch.arange(16.0)
    y = llm_int8_linear(x, weight, absmax, threshold, bias)
    assert torch.equal(y[0], bias) and torch.equal(y[3], bias)
    assert not y[1].isfinite().any() and not y[2].isfinite().any()


@pytest.mark.parametrize("shape", [(0, 32), (1, 32), (2, 3, 32)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    weight, absmax = weights(8, 32)
    x = torch.randn(shape)
    y = llm_int8_linear(x, weight, absmax, THRESHOLD)
    assert y.shape == (*shape[:-1], 8)
    turned = torch.randn(32, 6).T  # Not contiguous.
    assert torch.equal(
        llm_int8_linear(turned, weight, absmax, THRESHOLD),
        llm_int8_linear(turned.contiguous(), weight, absmax, THRESHOLD),
    )


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7])
@pytest.mark.parametrize("outliers", ["none", "some", "all", "off"])
def test_both_devices_products_are_the_exact_one(num_tokens: int, outliers: str) -> None:
    """The GPU's part is run here too: it is the same torch, in another arrangement."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randint(-128, 128, (24, 96), dtype=torch.int8, generator=generator)
    low = torch.randint(-128, 128, (num_tokens, 96), dtype=torch.int8, generator=generator)
    high = torch.randint(-127, 128, (num_tokens, 96), dtype=torch.int8, generator=generator)
    if outliers in ("none", "some"):
        high[:: 1 if outliers == "none" else 2] = 0
    wanted = low.double() @ weight.double().T
    if outliers != "off":
        wanted += 256 * (high.double() @ weight.double().T)
    for product in (_product_on_cpu, _product_on_gpu):
        found = product(low, None if outliers == "off" else high, weight)
        assert found.dtype is torch.float32 and found.shape == wanted.shape
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)


def test_the_product_is_an_operator_that_torch_accepts() -> None:
    weight, _ = weights(8, 32)
    low, high, _ = quantize_tokens(tokens(5, 32), THRESHOLD)
    operator = torch.ops.burrstone.llm_int8_product.default
    torch.library.opcheck(operator, (low, high, weight), test_utils=["test_schema", "test_faketensor"])
    torch.library.opcheck(operator, (low, None, weight), test_utils=["test_schema", "test_faketensor"])


def test_the_graph_has_no_shape_that_depends_on_data() -> None:
    """What a compiler and a CUDA graph need. The backend only looks; nothing is compiled."""
    weight, absmax = weights(8, 32)
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(str(graph.graph))
        return graph

    traced = torch.compile(llm_int8_linear, backend=look, fullgraph=True, dynamic=True)
    x = tokens(5, 32)
    assert torch.equal(traced(x, weight, absmax, THRESHOLD), llm_int8_linear(x, weight, absmax, THRESHOLD))
    assert torch.equal(
        traced(x[:3] * 0.01, weight, absmax, THRESHOLD), llm_int8_linear(x[:3] * 0.01, weight, absmax, 6.0)
    )
    assert len(seen) == 1 and "nonzero" not in seen[0] and ".item" not in seen[0]


def test_the_matmul_is_bitsandbytes() -> None:
    a = torch.randint(-128, 128, (3, 40), dtype=torch.int8)
    b = torch.randint(-128, 128, (5, 40), dtype=torch.int8)
    product = int8_matmul()(a, b)
    assert product.dtype is torch.int32 and torch.equal(product.long(), a.long() @ b.long().T)
