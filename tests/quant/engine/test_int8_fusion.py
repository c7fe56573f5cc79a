"""The pass over a compiled graph, run by Inductor on the CPU, where references compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import vllm.ir.ops  # noqa: F401  its ops are what the pass looks for
from torch import Tensor

from burrstone.kernels.library import choices
from burrstone.quant.engine import int8_ops
from burrstone.quant.engine.int8_fusion import HOOK, FuseInt8Rows

HIDDEN, N, INTERMEDIATE = 64, 192, 96
IR = torch.ops.vllm_ir


class Weights:
    """Of one layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.norms = [torch.rand(HIDDEN).to(dtype) for _ in range(2)]
        self.gate_up = torch.randint(-127, 128, (N, HIDDEN), dtype=torch.int8), torch.rand(N) / 100
        self.down = torch.randint(-127, 128, (HIDDEN, INTERMEDIATE), dtype=torch.int8), torch.rand(HIDDEN) / 100

    @staticmethod
    def linear(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        rows, row_scales = int8_ops.int8_rows(x)
        return int8_ops.int8_product(rows, row_scales, weight, scales, None, x.dtype, "on")

    def layer(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """As vLLM's Llama: a residual's norm, the MLP, a norm."""
        y, residual = IR.fused_add_rms_norm.default(x, residual, self.norms[0], 1e-5)
        wide = self.linear(y, *self.gate_up)
        half = wide.shape[1] // 2
        narrow = self.linear(torch.nn.functional.silu(wide[..., :half]) * wide[..., half:], *self.down)
        return self.linear(IR.rms_norm.default(narrow, self.norms[1], 1e-6), *self.gate_up), residual


def compiled(step: Callable[..., Any]) -> tuple[Callable[..., Any], FuseInt8Rows]:
    joining = FuseInt8Rows("cpu")
    torch._dynamo.reset()
    return torch.compile(step, fullgraph=True, options={HOOK: joining, "fx_graph_cache": False}), joining


def calls() -> dict[str, int]:
    return {name: count for (name, *_), count in choices.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_are_joined_with_what_stands_before_them(dtype: torch.dtype) -> None:
    weights = Weights(dtype)
    step, joining = compiled(weights.layer)
    for tokens in (3, 9):
        x, residual = torch.randn(tokens, HIDDEN).to(dtype), torch.randn(tokens, HIDDEN).to(dtype)
        x_before, residual_before = x.clone(), residual.clone()
        wanted = weights.layer(x, residual)
        for given in (x, residual):
            torch._dynamo.mark_dynamic(given, 0)
        choices.clear()
        found = step(x, residual)
        assert joining.joined == 3
        assert calls() == {"rms_norm_int8": 2, "silu_mul_int8": 1, "int8_product": 3}
        assert torch.equal(x, x_before) and torch.equal(residual, residual_before), "its inputs were written to"
        assert torch.equal(found[1], wanted[1])
        # Unjoined, what is rounded to INT8 was rounded to 16 bits before.
        off = (found[0].float() - wanted[0].float()).norm() / wanted[0].float().norm()
        assert off < 0.04


def test_what_somebody_else_reads_is_not_joined() -> None:
    weights = Weights(torch.bfloat16)

    def step(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, residual = IR.fused_add_rms_norm.default(x, residual, weights.norms[0], 1e-5)
        return Weights.linear(y, *weights.gate_up), y, residual

    run, joining = compiled(step)
    x, residual = torch.randn(4, HIDDEN).bfloat16(), torch.randn(4, HIDDEN).bfloat16()
    wanted, found = step(x, residual), run(x, residual)
    assert joining.joined == 0
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("norm", ["of a part of the row", "without a weight"])
def test_a_norm_that_the_kernel_does_not_know_is_not_joined(norm: str) -> None:
    weights = Weights(torch.bfloat16)

    def step(x: Tensor) -> Tensor:
        if norm == "without a weight":
            return Weights.linear(IR.rms_norm.default(x, None, 1e-5), *weights.gate_up)
        return Weights.linear(IR.rms_norm.default(x, weights.norms[0], 1e-5, 32), *weights.gate_up)

    run, joining = compiled(step)
    x = torch.randn(4, HIDDEN).bfloat16()
    torch.testing.assert_close(run(x), step(x))
    assert joining.joined == 0


def test_a_weight_of_another_type_is_joined() -> None:
    """Gemma's is float32."""
    weights, weight = Weights(torch.bfloat16), torch.rand(HIDDEN)

    def step(x: Tensor) -> Tensor:
        return Weights.linear(IR.rms_norm.default(x, weight, 1e-5), *weights.gate_up)

    run, joining = compiled(step)
    x = torch.randn(4, HIDDEN).bfloat16()
    wanted, found = step(x).float(), run(x).float()
    assert joining.joined == 1 and (found - wanted).norm() / wanted.norm() < 0.04


def test_the_hash_of_an_engine_knows_the_pass() -> None:
    """vLLM names its compiled artifacts after it."""
    from vllm.config.utils import normalize_value

    assert normalize_value(FuseInt8Rows("cpu")) == FuseInt8Rows("cpu").uuid()
