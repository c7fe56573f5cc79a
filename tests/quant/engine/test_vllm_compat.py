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
from vllm.v1.attention.backend import CommonAttentionMetadata

from burrstone.quant.engine import plugin
from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.engine.bnb import BitsAndBytesConfig
from burrstone.quant.engine.bnb_linear import BitsAndBytesInt8LinearMethod
from burrstone.quant.engine.int8_attention import Int8Attention, Int8MetadataBuilder
from burrstone.quant.engine.int8_fusion import HOOK
from burrstone.quant.engine.int8_linear import Int8Linear

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
        "from burrstone.quant.engine.plugin import register\n"
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


@contract("CutlassInt8ScaledMMLinearKernel", "POSSIBLE_INT8_KERNELS", "PlatformEnum", "replace_parameter")
def test_int8_linear_layers_are_asked_in_order_and_called_as_ours_expects() -> None:
    kernels = sys.modules[vllm.CutlassInt8ScaledMMLinearKernel.__mro__[1].__module__.rpartition(".scaled_mm")[0]]
    choosing = source(kernels.choose_scaled_mm_linear_kernel)
    assert (
        "possible_kernels.get(current_platform._enum, [])" in choosing and "for kernel in platform_kernels:" in choosing
    )
    assert "_POSSIBLE_INT8_KERNELS" in source(kernels.init_int8_linear_kernel)
    assert vllm.POSSIBLE_INT8_KERNELS[vllm.PlatformEnum.CUDA][0] is vllm.CutlassInt8ScaledMMLinearKernel
    stock = vllm.CutlassInt8ScaledMMLinearKernel
    for name in ("can_implement", "process_weights_after_loading", "apply_weights"):
        assert parameters(getattr(Int8Linear, name)) == parameters(getattr(stock, name))
    assert parameters(stock.__init__) == ["self", "c", "layer_param_names"]
    # What ours leaves to it: weights seen as [k, n].
    assert "weight.t()" in source(stock.process_weights_after_loading)
    assert parameters(vllm.replace_parameter)[:3] == ["layer", "param_name", "new_tensor"]


@contract("scaled_int8_quant", "cutlass_scaled_mm")
def test_the_ops_of_the_stock_layer_are_called_as_it_calls_them() -> None:
    assert parameters(vllm.scaled_int8_quant) == ["input", "scale", "azp", "symmetric"]
    assert parameters(vllm.cutlass_scaled_mm) == ["a", "b", "scale_a", "scale_b", "out_dtype", "bias"]


@contract("InductorPass", "get_current_vllm_config")
def test_a_pass_of_ours_runs_before_norms_are_lowered() -> None:
    from vllm.compilation import backends
    from vllm.compilation.passes import pass_manager

    assert CpuPlatform().pass_key == HOOK
    assert "self.pass_manager.add(" in source(backends.VllmBackend.configure_post_pass)
    running = source(pass_manager.PostGradPassManager.__call__)
    assert running.index("for pass_ in self.passes") < running.index("self.ir_lowering(graph)")
    # Norms of the graph are these ops, with these arguments.
    assert str(torch.ops.vllm_ir.rms_norm.default._schema).startswith(
        "vllm_ir::rms_norm(Tensor x, Tensor? weight, float epsilon, SymInt? variance_size=None)"
    )
    assert "Tensor x, Tensor x_residual, Tensor? weight, float epsilon" in str(
        torch.ops.vllm_ir.fused_add_rms_norm.default._schema
    )
    assert callable(vllm.get_current_vllm_config) and callable(vllm.InductorPass.hash_source)


@contract(
    "AttentionBackend", "AttentionBackendEnum", "AttentionCGSupport", "AttentionImpl", "AttentionMetadataBuilder",
    "KVCacheLayout", "MultipleOf", "register_backend", "split_decodes_and_prefills",
)  # fmt: skip
def test_an_attention_backend_is_called_as_ours_expects() -> None:
    assert vllm.AttentionBackend.__abstractmethods__ == {"get_name", "get_impl_cls", "get_builder_cls"}
    for ours, theirs in ((Int8Attention, vllm.AttentionImpl), (Int8MetadataBuilder, vllm.AttentionMetadataBuilder)):
        assert ours.__abstractmethods__ == frozenset()
        for name in theirs.__abstractmethods__ - {"__init__"}:
            assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name))
    assert set(parameters(Int8Attention.__init__)) >= {"num_heads", "head_size", "scale", "num_kv_heads"}
    assert vllm.AttentionBackend.forward_includes_kv_cache_update is True
    assert parameters(vllm.split_decodes_and_prefills)[:2] == ["common_attn_metadata", "decode_threshold"]
    assert "Precise for prefill rows" in inspect.getsource(CommonAttentionMetadata)
    assert parameters(vllm.register_backend)[:2] == ["backend", "class_path"]
