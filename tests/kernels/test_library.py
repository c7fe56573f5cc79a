"""The ops as PyTorch sees them, without a GPU."""

import logging

import pytest
import torch

from burrstone.kernels.kv_cache import KVCache
from burrstone.kernels.library import choices
from burrstone.kernels.ops.attention_kv_int8 import attention_kv_int8
from burrstone.kernels.ops.gemm_w8a8_decode import gemm_w8a8_decode
from burrstone.kernels.ops.gemm_w8a16 import gemm_w8a16, workspace_for
from burrstone.kernels.ops.rms_norm_int8 import rms_norm_int8
from burrstone.kernels.ops.silu_mul_int8 import silu_mul_int8
from burrstone.kernels.registry import KERNELS


def test_every_kernel_is_an_op() -> None:
    assert all(hasattr(torch.ops.burrstone, name) for name in KERNELS)


def test_the_choice_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    key = ("silu_mul_int8", "reference", "not on a GPU")
    choices.pop(key, None)
    with caplog.at_level(logging.INFO, "burrstone.kernels.library"):
        for _ in range(3):
            silu_mul_int8(torch.randn(2, 8))
    assert choices[key] == 3
    assert caplog.messages == ["silu_mul_int8: reference (not on a GPU)"]


def test_a_layer_of_ops() -> None:
    """They fit together: norm, product, activation, product."""
    torch.manual_seed(0)
    x, norm = torch.randn(3, 64).bfloat16(), torch.ones(64).bfloat16()
    up, down = torch.randn(256, 64), torch.randn(64, 128)
    scales = [weight.abs().amax(dim=1) / 127 for weight in (up, down)]
    rounded = [
        (weight / scale[:, None]).round().to(torch.int8) for weight, scale in zip((up, down), scales, strict=True)
    ]
    hidden = gemm_w8a8_decode(*rms_norm_int8(x, norm, 1e-5)[:2], rounded[0], scales[0])
    found = gemm_w8a8_decode(*silu_mul_int8(hidden), rounded[1], scales[1])
    h = x.float() * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-5) @ up.T
    wanted = torch.nn.functional.silu(h[:, :128]) * h[:, 128:] @ down.T
    assert ((found.float() - wanted).norm() / wanted.norm()) < 0.03


def test_an_op_can_be_compiled() -> None:
    weight, scales = torch.randint(-127, 128, (32, 64), dtype=torch.int8), torch.rand(32)
    workspace = workspace_for(weight.device, 3, 32, 64)

    def step(x: torch.Tensor) -> torch.Tensor:
        return gemm_w8a16(x * 2, weight, scales, workspace=workspace) + 1

    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))


def test_attention_over_an_empty_cache_is_zero() -> None:
    cache = KVCache.empty(2, 1, 16, 32, torch.device("cpu"))
    tables, lengths = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    assert not attention_kv_int8(torch.randn(1, 2, 32).bfloat16(), cache, tables, lengths, 1.0).any()
