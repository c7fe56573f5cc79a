"""Linear layers as the formats compute them, against whole-number arithmetic and bitsandbytes' own."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from burrstone.quant.linears import OUTLIER_THRESHOLD, BnbLinear, W8A8Linear, W8A16Linear
from burrstone.quant.llm_int8 import llm_int8_linear
from burrstone.quant.rounding import QMAX, SCALE_FLOOR, quantize, weight_scale

KINDS = (W8A16Linear, W8A8Linear, BnbLinear)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x [M, K], weight [N, K] int8, scale, bias or None."""
    tokens, rows = draw(st.sampled_from((1, 2, 7))), draw(st.sampled_from((1, 3, 5)))
    columns = draw(st.sampled_from((1, 2, 3, 5, 127, 129, 300)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(tokens, columns) * draw(st.sampled_from((0.01, 1.0, 4.0)))
    weight = torch.randint(-QMAX, QMAX + 1, (rows, columns), dtype=torch.int8)
    if draw(st.booleans()):
        x[draw(st.integers(0, tokens - 1))] = 0.0
        weight[draw(st.integers(0, rows - 1))] = draw(st.sampled_from((-QMAX, 0, QMAX)))
    scale = torch.rand(draw(st.sampled_from((1, rows))), 1) + 0.01
    return x, weight, scale, torch.randn(rows) if draw(st.booleans()) else None


def exact(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Unrounded activations, float64."""
    return x.double() @ (weight.double() * scale.double()).T + (0.0 if bias is None else bias.double())


def whole_numbers(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """An INT8 kernel: INT32 sums of the two grids, then both scales, then the bias."""
    steps = (x.abs().amax(dim=1, keepdim=True) / QMAX).clamp(min=SCALE_FLOOR)
    levels = (x / steps).round().clamp(-QMAX, QMAX).to(torch.int64)
    sums = levels @ weight.to(torch.int64).T
    return sums.double() * steps.double() * scale.double().T + (0.0 if bias is None else bias.double())


def close(got: Tensor, wanted: Tensor, case: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
    """To float32's rounding of the summands, which may cancel."""
    x, weight, scale, bias = (None if part is None else part.abs().float() for part in case)
    assert x is not None and weight is not None and scale is not None
    size = float(exact(x, weight, scale, bias).max()) + 1e-30
    torch.testing.assert_close(got.double(), wanted, rtol=0.0, atol=1e-6 * size)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_w8a16_multiplies_by_the_dequantized_weight(case: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
    x, weight, scale, bias = case
    close(W8A16Linear(weight, scale, bias)(x), exact(x, weight, scale, bias), case)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_w8a8_is_an_integer_product(case: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
    x, weight, scale, bias = case
    close(W8A8Linear(weight, scale, bias)(x), whole_numbers(x, weight, scale, bias), case)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_bnb_is_what_the_engines_layer_computes(case: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
    x, weight, scale, bias = case
    assume(x.shape[1] > 1)  # torch's product of int8 matrices leaves its result unset for one column
    absmax = scale.expand(len(weight), 1)[:, 0] * QMAX
    served = llm_int8_linear(x.float(), weight, absmax, OUTLIER_THRESHOLD, None if bias is None else bias.float())
    close(BnbLinear(weight, scale, bias)(x.float()), served.double(), case)


def test_bnbs_threshold_itself_is_an_outlier_of_its_own_token() -> None:
    weight, scale = torch.ones(1, 3, dtype=torch.int8), torch.ones(1, 1)
    linear = BnbLinear(weight, scale)
    # The step is the largest inlier's, and the outlier stands on it to half a step.
    assert linear.activations(torch.tensor([[6.0, 0.011, 1.0]])).tolist() == [pytest.approx([6.0, 1 / 127, 1.0])]
    below = linear.activations(torch.tensor([[5.999, 0.011, 1.0]]))
    assert below.tolist() == [pytest.approx([5.999, 0.0, 21 * 5.999 / 127])]
    x = torch.tensor([[[-7.0, 0.0, 1.0]], [[0.003, 0.0, 1.0]]])
    assert torch.equal(linear.activations(x)[1], linear.activations(x[1:])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6,), (1, 6), (4, 6), (2, 3, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_types_go_through(kind: type[W8A16Linear], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, bias = torch.randint(-127, 128, (5, 6), dtype=torch.int8), torch.randn(5, dtype=torch.bfloat16)
    linear = kind(weight, torch.rand(5, 1), bias)
    x = torch.randn(shape).to(dtype)
    before = x.clone()
    answer = linear(x)
    assert answer.shape == (*shape[:-1], 5) and answer.dtype == dtype
    assert torch.equal(x, before)
    # It computes in float32 and rounds once.
    assert torch.equal(answer, linear(x.float()).to(dtype))
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in linear.parameters())
    assert [name for name, _ in linear.named_parameters()] == ["weight", "bias"]


def test_a_tokens_answer_does_not_depend_on_its_neighbours_in_w8a8() -> None:
    linear = W8A8Linear(torch.randint(-127, 128, (5, 33), dtype=torch.int8), torch.rand(5, 1))
    x = torch.randn(4, 33) * torch.tensor([[1.0], [100.0], [0.0], [0.01]])
    for token, row in zip(linear.activations(x), x, strict=True):
        assert torch.equal(token, linear.activations(row[None])[0])


@pytest.mark.parametrize("outliers", [False, True])
def test_bnb_is_what_the_library_computes(outliers: bool) -> None:
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = torch.randn(24, 64)
    x = torch.randn(5, 64).clamp(-5, 5)
    if outliers:
        x[1, 7], x[3, 40] = 30.0, -9.0
    scale = weight_scale(weight)
    quantized, bias = quantize(weight, scale), torch.arange(24.0)
    state = bitsandbytes.MatmulLtState()
    state.CB, state.SCB, state.threshold = quantized, scale[:, 0] * QMAX, OUTLIER_THRESHOLD
    state.has_fp16_weights = state.is_training = False
    with torch.no_grad():
        theirs = bitsandbytes.matmul(x.half(), quantized, bias=bias.half(), state=state).float()
        ours = BnbLinear(quantized, scale, bias)(x.half()).float()
    # The library leaves an outlier's column unrounded; here it is rounded to half a step of its token.
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=5e-2 if outliers else 2e-2)
    if outliers:
        # The tolerance is one that rounding the outliers too would not meet.
        rounded = W8A8Linear(quantized, scale, torch.arange(24.0))(x.half()).float()
        assert float((rounded - theirs).abs().max()) > 0.2
