"""What an engine's additional_config says of our kernels."""

from types import SimpleNamespace
from typing import Any

import pytest

from burrstone.quant.engine import options
from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.engine.options import KEY, KernelOptions, read
from burrstone.serving.engine import kernels as serving_kernels


def test_nothing_is_on_in_an_engine_that_says_nothing() -> None:
    assert read({}) == KernelOptions("off", False)


def test_what_is_said() -> None:
    assert read({KEY: {"int8_linear": "on", "int8_fusion": True}, "other": 1}) == KernelOptions("on", True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"int8_linaer": "on"}, "has no int8_linaer; it has int8_fusion, int8_linear"),
        ({"int8_linear": "maybe"}, "int8_linear must be one of auto, on, off"),
        ({"int8_fusion": "yes"}, "int8_fusion must be true or false"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read({KEY: given})


def test_the_server_writes_under_the_same_key() -> None:
    assert serving_kernels.KEY == KEY
    assert vllm.AttentionBackendEnum.CUSTOM.name == serving_kernels.ATTENTION_BACKEND


def test_another_plugins_object_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """additional_config may be an object of another plugin's."""
    current = SimpleNamespace(additional_config=object())
    monkeypatch.setitem(vllm.__dict__, "get_current_vllm_config", lambda: current)
    assert options.current() == KernelOptions()
