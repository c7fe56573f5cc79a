"""What this wing takes from vLLM, each name from its home there.

A name is looked up when it is first used: vLLM's layers take seconds to import, and most processes that load the plugin
build no model.
"""

import importlib
from typing import Any

_HOMES = {
    "BasevLLMParameter": "vllm.model_executor.parameter",
    "ChannelQuantScaleParameter": "vllm.model_executor.parameter",
    "LinearBase": "vllm.model_executor.layers.linear",
    "LinearMethodBase": "vllm.model_executor.layers.linear",
    "ModelWeightParameter": "vllm.model_executor.parameter",
    "ParallelLMHead": "vllm.model_executor.layers.vocab_parallel_embedding",
    "QUANTIZATION_METHODS": "vllm.model_executor.layers.quantization",
    "QuantizationConfig": "vllm.model_executor.layers.quantization",
    "RoutedExperts": "vllm.model_executor.layers.fused_moe",
    "UnquantizedEmbeddingMethod": "vllm.model_executor.layers.vocab_parallel_embedding",
    "UnquantizedLinearMethod": "vllm.model_executor.layers.linear",
    "current_platform": "vllm.platforms",
    "register_quantization_config": "vllm.model_executor.layers.quantization",
    "register_weight_loader_v2_supported_method": "vllm.model_executor.layers.linear",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
