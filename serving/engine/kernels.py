"""Our INT8 kernels as the configuration asks for them. The quantization wing reads this inside the engine."""

from typing import Any

from burrstone.serving.config import ConfigError, ServeConfig

# Under it, in vLLM's additional_config, the quantization wing looks for what is switched on.
KEY = "burrstone_kernels"
ATTENTION_BACKEND = "CUSTOM"
_INT8 = "int8_per_token_head"


def check_kernels(config: ServeConfig, profile: str) -> None:
    """Raises ConfigError for what is asked for and cannot be. profile: a real one."""
    kernels = config.engine.kernels
    asked = {
        "int8_linear": kernels.int8_linear == "on",
        "int8_fusion": kernels.int8_fusion,
        "int8_attention": kernels.int8_attention,
        "lora_configs": kernels.lora_configs is not None,
    }
    named = next((key for key, is_asked in asked.items() if is_asked), None)
    if profile != "cuda" and named is not None:
        raise ConfigError(
            f"engine.kernels.{named} is for NVIDIA GPUs, and the profile is {profile}; leave it out, or serve with "
            "profile cuda"
        )
    if kernels.int8_fusion and config.engine.enforce_eager:
        raise ConfigError(
            "engine.kernels.int8_fusion rewrites compiled graphs, and engine.enforce_eager compiles none; set one of them"
        )
    if kernels.int8_attention and config.engine.kv_cache_dtype != "auto":
        _check_cache(config.engine.kv_cache_dtype)
    if kernels.int8_attention and config.engine.speculative is not None:
        raise ConfigError(
            "engine.kernels.int8_attention decodes one token a step, and engine.speculative checks several; set one of them"
        )
    if kernels.lora_configs is not None and not any(kernels.lora_configs.expanduser().glob("*_SHRINK.json")):
        raise ConfigError(
            f"engine.kernels.lora_configs: no file in {kernels.lora_configs} is named GPU_SHRINK.json, as vLLM names them "
            "(NVIDIA_H100_80GB_HBM3_SHRINK.json, ..._EXPAND_TRUE.json)"
        )


def kernel_arguments(config: ServeConfig, kv_cache_dtype: str) -> dict[str, Any]:
    """What of vLLM's engine arguments says it. Raises ConfigError for what does not go together."""
    if config.profile != "cuda":
        return {}
    kernels = config.engine.kernels
    switches = {"int8_linear": kernels.int8_linear, "int8_fusion": kernels.int8_fusion}
    given = config.engine.vllm_args.get("additional_config", {})
    if not isinstance(given, dict) or KEY in given:
        raise ConfigError(
            f"engine.vllm_args.additional_config must be a mapping without {KEY}, which engine.kernels fills"
        )
    arguments: dict[str, Any] = {"additional_config": {KEY: switches} | given}
    if kernels.int8_attention:
        _check_cache(kv_cache_dtype)
        arguments["attention_backend"] = ATTENTION_BACKEND
    return arguments


def _check_cache(kv_cache_dtype: str) -> None:
    if kv_cache_dtype != _INT8:
        raise ConfigError(
            f"engine.kernels.int8_attention reads an INT8 KV cache, and this one is {kv_cache_dtype!r}; set "
            f"engine.kv_cache_dtype to {_INT8}, or leave int8_attention out"
        )


def kernel_environment(config: ServeConfig) -> dict[str, str]:
    folder = config.engine.kernels.lora_configs
    return {} if folder is None else {"VLLM_TUNED_CONFIG_FOLDER": str(folder.expanduser().resolve())}
