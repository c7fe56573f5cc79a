"""What the quantization wing relies on in vLLM, a symbol at a time: a bump that moves or changes one fails here, by name."""

import importlib.metadata
import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from contracts import Contracts, parameters, source
from vllm.model_executor.layers import linear, logits_processor, quantization
from vllm.model_executor.layers.fused_moe import routed_experts
from vllm.model_executor.model_loader import weight_utils
from vllm.platforms.cpu import CpuPlatform
from vllm.plugins import load_plugins_by_group

from burrstone.quant import plugin
from burrstone.quant import vllm_compat as vllm
from burrstone.quant.bnb import BitsAndBytesConfig
from burrstone.quant.bnb_linear import BitsAndBytesInt8LinearMethod

contract = Contracts()


def test_every_symbol_has_a_contract() -> None:
    assert contract.covered == set(vllm.__all__)


def test_an_unknown_name_is_no_symbol() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LinearBaze'"):
        _ = vllm.LinearBaze


@contract("QuantizationConfig")
def test_a_configuration_has_the_methods_that_ours_gives() -> None:
    assert vllm.QuantizationConfig.__abstractmethods__ == {
        "get_name", "get_supported_act_dtypes", "get_min_capability", "get_config_filenames", "from_config",
        "get_quant_method",
    }  # fmt: skip
    assert BitsAndBytesConfig.__abstractmethods__ == frozenset()
    assert parameters(vllm.QuantizationConfig.get_quant_method) == ["self", "layer", "prefix"]
    assert parameters(vllm.QuantizationConfig.apply_vllm_mapper) == ["self", "hf_to_vllm_mapper"]
    assert BitsAndBytesConfig(6.0).packed_modules_mapping == {}
    # Without a configuration in the checkpoint it is made without arguments, which is where ours refuses.
    assert "quant_cls()" in source(weight_utils.get_quant_config)


@contract("register_quantization_config", "QUANTIZATION_METHODS", "current_platform")
def test_a_method_once_registered_is_known_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "QUANTIZATION_METHODS", [])
    monkeypatch.setitem(vllm.__dict__, "QUANTIZATION_METHODS", quantization.QUANTIZATION_METHODS)
    monkeypatch.setattr(quantization, "_CUSTOMIZED_METHOD_TO_QUANT_CONFIG", {})
    plugin.register()
    plugin.register()
    assert quantization.QUANTIZATION_METHODS == ["bitsandbytes"]
    assert quantization.get_quantization_config("bitsandbytes") is BitsAndBytesConfig
    # The CPU's empty list means that it checks nothing; another platform's is added to.
    assert CpuPlatform.supported_quantization == []
    assert callable(vllm.current_platform.is_cpu) and callable(vllm.current_platform.is_cuda)
    assert isinstance(vllm.current_platform.device_name, str)


def test_another_plugins_bitsandbytes_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(_: str) -> Any:
        pytest.fail("registered")

    monkeypatch.setitem(vllm.__dict__, "QUANTIZATION_METHODS", ["bitsandbytes"])
    monkeypatch.setitem(vllm.__dict__, "register_quantization_config", register)
    plugin.register()


def test_vllm_finds_the_plugin() -> None:
    entries = importlib.metadata.entry_points(group="vllm.general_plugins")
    (entry,) = (entry for entry in entries if entry.name == "burrstone_quant")
    assert entry.load() is plugin.register
    assert load_plugins_by_group("vllm.general_plugins")["burrstone_quant"] is plugin.register


def test_registering_loads_no_layer() -> None:
    """It runs at the start of every process, of front ends too, and vLLM's layers take seconds to import."""
    program = (
        "import sys, vllm.model_executor.layers.quantization\n"
        "from burrstone.quant.plugin import register\n"
        "before = set(sys.modules)\n"
        "register()\n"
        "print([name for name in set(sys.modules) - before if not name.startswith('burrstone.quant')])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@contract("LinearMethodBase", "UnquantizedLinearMethod")
def test_a_linear_method_is_called_as_ours_expects() -> None:
    assert parameters(vllm.LinearMethodBase.create_weights)[1:7] == parameters(
        BitsAndBytesInt8LinearMethod.create_weights
    )[1:7]  # fmt: skip
    assert parameters(vllm.LinearMethodBase.apply) == ["self", "layer", "x", "bias"]
    assert parameters(vllm.LinearMethodBase.process_weights_after_loading) == ["self", "layer"]
    assert parameters(vllm.LinearMethodBase.dequantize_weight) == ["self", "layer"]
    assert parameters(vllm.LinearMethodBase.tie_weights) == ["self", "layer", "embed_tokens"]
    assert issubclass(vllm.UnquantizedLinearMethod, vllm.LinearMethodBase)


@contract("LinearBase", "register_weight_loader_v2_supported_method")
def test_layers_split_what_they_load_by_the_parameters_own_dimensions() -> None:
    assert BitsAndBytesInt8LinearMethod.__name__ in linear.WEIGHT_LOADER_V2_SUPPORTED
    for layer in (linear.ColumnParallelLinear, linear.RowParallelLinear):
        assert issubclass(layer, vllm.LinearBase)
        assert "weight_loader=(" in source(layer.__init__) and "WEIGHT_LOADER_V2_SUPPORTED" in source(layer.__init__)
    assert "self.prefix = prefix" in source(vllm.LinearBase.__init__)


@contract("BasevLLMParameter", "ModelWeightParameter", "ChannelQuantScaleParameter")
def test_parameters_know_how_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale a row is whole on every rank that holds a part of the columns; a single number is never split."""
    base = vllm.BasevLLMParameter
    for cls in (vllm.ModelWeightParameter, vllm.ChannelQuantScaleParameter):
        assert issubclass(cls, base) and cls.load_qkv_weight is not base.load_qkv_weight
    assert vllm.ChannelQuantScaleParameter.load_row_parallel_weight is base.load_row_parallel_weight
    assert vllm.ModelWeightParameter.load_row_parallel_weight is not base.load_row_parallel_weight
    module = sys.modules[base.__module__]
    monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: 1)
    monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 2)
    number = base(data=torch.zeros(1), weight_loader=lambda *_: None)
    for loading in (number.load_merged_column_weight, number.load_qkv_weight):
        loading(torch.tensor(3.0), shard_id=0, shard_offset=7, shard_size=7, num_heads=1)
    assert number.item() == 3.0 and not number.requires_grad


@contract("ParallelLMHead", "UnquantizedEmbeddingMethod")
def test_a_head_computes_with_its_quantization_method() -> None:
    assert "lm_head.quant_method.apply(" in inspect.getsource(logits_processor)
    assert "self.quant_method.tie_weights(self, embed_tokens)" in source(vllm.ParallelLMHead.tie_weights)
    assert parameters(vllm.UnquantizedEmbeddingMethod.tie_weights) == ["self", "layer", "embed_tokens"]
    assert not issubclass(vllm.ParallelLMHead, vllm.LinearBase)


@contract("RoutedExperts")
def test_experts_ask_the_configuration_too() -> None:
    assert vllm.RoutedExperts is routed_experts.RoutedExperts
    assert "resolve_quant_method(quant_config, self, prefix)" in source(vllm.RoutedExperts._get_quant_method)
