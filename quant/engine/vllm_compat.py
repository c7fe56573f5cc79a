"""What this wing takes from vLLM, each name from its home there.

A name is looked up when it is first used: vLLM's layers take seconds to import, and most processes that load the plugin
build no model.
"""

import importlib
from typing import Any

_HOMES = {
    "AttentionBackend": "vllm.v1.attention.backend",
    "AttentionBackendEnum": "vllm.v1.attention.backends.registry",
    "AttentionCGSupport": "vllm.v1.attention.backend",
    "AttentionImpl": "vllm.v1.attention.backend",
    "AttentionMetadataBuilder": "vllm.v1.attention.backend",
    "BasevLLMParameter": "vllm.model_executor.parameter",
    "ChannelQuantScaleParameter": "vllm.model_executor.parameter",
    "CutlassInt8ScaledMMLinearKernel": "vllm.model_executor.kernels.linear",
    "InductorPass": "vllm.compilation.passes.inductor_pass",
    "KVCacheLayout": "vllm.v1.kv_cache_interface",
    "LinearBase": "vllm.model_executor.layers.linear",
    "LinearMethodBase": "vllm.model_executor.layers.linear",
    "ModelWeightParameter": "vllm.model_executor.parameter",
    "MultipleOf": "vllm.v1.attention.backend",
    "ParallelLMHead": "vllm.model_executor.layers.vocab_parallel_embedding",
    "POSSIBLE_INT8_KERNELS": "vllm.model_executor.kernels.linear",
    "PlatformEnum": "vllm.platforms",
    "QUANTIZATION_METHODS": "vllm.model_executor.layers.quantization",
    "QuantizationConfig": "vllm.model_executor.layers.quantization",
    "RoutedExperts": "vllm.model_executor.layers.fused_moe",
    "UnquantizedEmbeddingMethod": "vllm.model_executor.layers.vocab_parallel_embedding",
    "UnquantizedLinearMethod": "vllm.model_executor.layers.linear",
    "current_platform": "vllm.platforms",
    "cutlass_scaled_mm": "vllm._custom_ops",
    "get_current_vllm_config": "vllm.config",
    "register_backend": "vllm.v1.attention.backends.registry",
    "register_quantization_config": "vllm.model_executor.layers.quantization",
    "register_weight_loader_v2_supported_method": "vllm.model_executor.layers.linear",
    "replace_parameter": "vllm.model_executor.utils",
    "scaled_int8_quant": "vllm._custom_ops",
    "split_decodes_and_prefills": "vllm.v1.attention.backends.utils",
}
# What has another name there: no public way leads to it.
_PRIVATE = {"POSSIBLE_INT8_KERNELS": "_POSSIBLE_INT8_KERNELS"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), _PRIVATE.get(name, name))
