"""The INT8 linear layer in vLLM's list: when it is taken, and who computes what."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from burrstone.kernels.library import choices
from burrstone.kernels.ops import gemm_w8a8_decode
from burrstone.kernels.select import Choice, Tile
from burrstone.quant.engine import int8_linear, int8_ops
from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.engine.int8_fusion import HOOK, FuseInt8Rows
from burrstone.quant.engine.int8_linear import Int8Linear
from burrstone.quant.engine.options import KEY

N, K = 48, 64
DYNAMIC = SimpleNamespace(is_static_input_scheme=False, is_channelwise=True, input_symmetric=True)
NAMES = ("weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj")


@contextmanager
def engine(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Any]:
    """The configuration of an engine whose model is being built."""
    settings: dict[str, Any] = {}
    current = SimpleNamespace(
        additional_config={KEY: options}, compilation_config=SimpleNamespace(inductor_compile_config=settings)
    )
    with monkeypatch.context() as patched:
        patched.setitem(vllm.__dict__, "get_current_vllm_config", lambda: current)
        patched.setattr(Int8Linear, "is_supported", classmethod(lambda *_: (True, None)))
        yield settings


def loaded(*, per_tensor: bool = False) -> torch.nn.Module:
    """A layer as vLLM has it after loading."""
    layer = torch.nn.Module()
    layer.logical_widths = [N]
    layer.weight = torch.nn.Parameter(torch.randint(-127, 128, (N, K), dtype=torch.int8), requires_grad=False)
    scales = torch.rand(1) if per_tensor else torch.rand(N, 1)
    layer.weight_scale = torch.nn.Parameter(scales / 100, requires_grad=False)
    for name in NAMES[2:]:
        layer.register_parameter(name, None)
    return layer


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "is off"),
        ({"int8_linear": "auto"}, "no measurement says that it is faster on sm90"),
        ({"int8_linear": "on"}, None),
        ({"int8_fusion": True}, None),
    ],
)
def test_it_declines_where_nothing_is_switched_on(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], reason: str | None
) -> None:
    monkeypatch.setattr(int8_ops, "tuned_rows", lambda _: iter([{"arch": "sm90", "wins": False}]))
    with engine(monkeypatch, **options):
        assert Int8Linear.can_implement(DYNAMIC) == (reason is None, reason)


def test_it_is_taken_where_a_row_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_ops, "tuned_rows", lambda _: iter([{"arch": "sm90", "wins": True}]))
    with engine(monkeypatch, int8_linear="auto"):
        assert Int8Linear.can_implement(DYNAMIC) == (True, None)


@pytest.mark.parametrize("change", [{"is_static_input_scheme": True}, {"input_symmetric": False}])
def test_other_inputs_are_left_to_others(monkeypatch: pytest.MonkeyPatch, change: dict[str, bool]) -> None:
    with engine(monkeypatch, int8_linear="on"):
        can, reason = Int8Linear.can_implement(SimpleNamespace(**vars(DYNAMIC) | change))
    assert not can and reason is not None and "rounded by the token" in reason


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("shape", [(3, K), (2, 5, K), (0, K)])
def test_a_layer(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], per_tensor: bool) -> None:
    torch.manual_seed(0)
    layer, x, bias = loaded(per_tensor=per_tensor), torch.randn(shape), torch.randn(N)
    weight = layer.weight.double() * layer.weight_scale.double().reshape(-1, 1)
    with engine(monkeypatch, int8_linear="on"):
        kernel = Int8Linear(DYNAMIC, NAMES)
        kernel.process_weights_after_loading(layer)
        found = kernel.apply_weights(layer, x, bias)
    assert found.shape == (*shape[:-1], N) and found.dtype == x.dtype
    wanted = x.double() @ weight.T + bias.double()
    assert (found.double() - wanted).norm() <= 0.02 * wanted.norm()


class Cutlass:
    """Stands in for vLLM's op, which no CPU has."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out_dtype: Any, bias: Tensor | None
    ) -> Tensor:
        self.calls += 1
        assert b.stride(0) == 1 and scale_a.shape == (a.shape[0], 1) and scale_b.shape == (b.shape[1], 1)
        return ((a.double() @ b.double()) * scale_a * scale_b.T).to(out_dtype)


@pytest.mark.parametrize(
    ("tokens", "linear", "row_wins", "ours"),
    [
        (64, "on", None, True),
        (65, "on", None, False),
        (16, "auto", None, False),
        (16, "auto", False, False),
        (16, "auto", True, True),
        (16, "off", True, False),
        (0, "on", True, False),
    ],
)
def test_who_computes_a_product(
    monkeypatch: pytest.MonkeyPatch, tokens: int, linear: str, row_wins: bool | None, ours: bool
) -> None:
    """As on a GPU: few tokens are ours where they are asked for or measured to win, and CUTLASS has the rest."""
    cutlass = Cutlass()
    monkeypatch.setitem(vllm.__dict__, "cutlass_scaled_mm", cutlass)
    monkeypatch.setattr(int8_ops, "select", lambda *_: Choice(Tile(16, 64, 128), "told", row_wins))
    int8_ops.prepare(torch.device("cpu"), N, K)
    rows = torch.randint(-127, 128, (tokens, K), dtype=torch.int8)
    weight = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    scales, weight_scales = torch.rand(tokens), torch.rand(N)
    choices.clear()
    found = int8_ops._product_on_gpu(rows, scales, weight, weight_scales, None, torch.float32, linear)
    assert cutlass.calls == (not ours)
    assert sum(count for (name, *_), count in choices.items() if name == gemm_w8a8_decode.NAME) == ours
    torch.testing.assert_close(
        found, int8_ops.int8_product(rows, scales, weight, weight_scales, None, torch.float32, "off")
    )


def test_the_room_for_parts_holds_the_largest_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_ops, "_room", {"parts": 0, "arrivals": 0})
    monkeypatch.setattr(int8_ops, "_workspaces", {})
    device = torch.device("cpu")
    int8_ops.prepare(device, 64, 64)
    small = int8_ops._workspace(device)
    int8_ops.prepare(device, 4096, 4096)
    large = int8_ops._workspace(device)
    for _ in range(2):  # as when weights are loaded again
        int8_ops.prepare(device, 64, 64)
        int8_ops.prepare(device, 4096, 4096)
        assert int8_ops._workspace(device) is large, "a captured graph has the old one's address"
    assert int8_ops._workspaces[device, 0] == [small, large] and not large.arrivals.any()
    for tokens in (1, 16, 17, 33, 64):
        needed = gemm_w8a8_decode.workspace_for(device, tokens, 4096, 4096)
        assert needed.parts.numel() <= large.parts.numel() and needed.arrivals.numel() <= large.arrivals.numel()


def test_fusion_joins_the_engines_passes_once_and_leaves_anothers_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with engine(monkeypatch, int8_fusion=True) as settings:
        Int8Linear(DYNAMIC, NAMES)
        first = settings[HOOK]
        Int8Linear(DYNAMIC, NAMES)
        assert isinstance(first, FuseInt8Rows) and settings[HOOK] is first
        settings[HOOK] = "another's"
        Int8Linear(DYNAMIC, NAMES)
        assert settings[HOOK] == "another's" and "int8_fusion is off" in caplog.text
    with engine(monkeypatch, int8_linear="on") as settings:
        Int8Linear(DYNAMIC, NAMES)
        assert not settings


def test_the_plugin_offers_it_first_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from burrstone.quant.engine import plugin

    lists = {platform: list(kernels) for platform, kernels in vllm.POSSIBLE_INT8_KERNELS.items()}
    monkeypatch.setitem(vllm.__dict__, "POSSIBLE_INT8_KERNELS", lists)
    offered: list[tuple[Any, str]] = []
    monkeypatch.setitem(vllm.__dict__, "register_backend", lambda name, path: offered.append((name, path)))
    plugin.register()
    assert lists == vllm_lists() and not offered, "a CPU's engine is left as it was"
    monkeypatch.setitem(
        vllm.__dict__,
        "current_platform",
        SimpleNamespace(is_cuda=lambda: True, is_cpu=lambda: False, device_type="cuda"),
    )
    for _ in range(2):
        plugin.register()
    stock = vllm_lists()[vllm.PlatformEnum.CUDA]
    assert lists[vllm.PlatformEnum.CUDA] == [int8_linear.Int8Linear, *stock]
    assert offered[0] == (vllm.AttentionBackendEnum.CUSTOM, plugin.ATTENTION)


def test_offering_needs_nothing_loaded_before() -> None:
    """As in an engine's process on a GPU, where plugins come first; nothing of it may want a GPU either."""
    program = (
        "from burrstone.quant.engine import plugin, vllm_compat\n"
        "plugin.offer_kernels(vllm_compat)\n"
        "print(vllm_compat.POSSIBLE_INT8_KERNELS[vllm_compat.PlatformEnum.CUDA][0].__name__)\n"
        "import logging, vllm.logger\n"
        "vllm.logger._configure_vllm_root_logger()\n"
        "logging.getLogger('burrstone.kernels.library').info('is heard')\n"
        "print(vllm_compat.AttentionBackendEnum.CUSTOM.get_class().__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert (done.stdout + done.stderr).count("is heard") == 1
    assert {"Int8Linear", "Int8AttentionBackend"} <= set(done.stdout.split())


def vllm_lists() -> dict[Any, list[Any]]:
    from vllm.model_executor.kernels import linear

    return dict(linear._POSSIBLE_INT8_KERNELS)
