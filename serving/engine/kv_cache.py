"""The type of the KV cache: the configuration's, else what the checkpoint's config.json asks for."""

from collections.abc import Mapping
from typing import Any

from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.engine.cpu import wrong_on_cpu

# config.json holds what vLLM has no key for under this one.
_OURS, _KEY = "burrstone", "kv_cache_dtype"
_KNOWN = ("int8_per_token_head",)


def kv_cache_dtype(config: ServeConfig, model_config: Mapping[str, Any]) -> str:
    """vLLM's kv_cache_dtype. `config.profile` is a real one. Raises ConfigError for what the profile computes wrongly."""
    if config.engine.kv_cache_dtype != "auto":
        return config.engine.kv_cache_dtype
    asked = checkpoint_kv_cache_dtype(model_config)
    if asked is None:
        return "auto"
    if config.profile == "cpu" and wrong_on_cpu(asked):
        raise ConfigError(
            f"engine.kv_cache_dtype is auto and the checkpoint's config.json asks for {asked!r} ({_OURS}.{_KEY}), which "
            "vLLM's CPU backend accepts and then computes wrong output with; set --engine.kv-cache-dtype to fp8 (8 "
            "bits; needs AVX-512) or bfloat16 (16 bits; not with engine.dtype float32), or serve it on a GPU"
        )
    return asked


def checkpoint_kv_cache_dtype(model_config: Mapping[str, Any]) -> str | None:
    """What config.json asks for, or None. Raises ConfigError for a value that is not known here."""
    ours = model_config.get(_OURS, {})
    if not isinstance(ours, dict):
        raise ConfigError(f"the checkpoint's config.json: {_OURS} must hold an object, not {type(ours).__name__}")
    if _KEY not in ours:
        return None
    asked = ours[_KEY]
    if asked not in _KNOWN:
        raise ConfigError(
            f"the checkpoint's config.json asks for {_OURS}.{_KEY} {asked!r}, which this version does not know (it knows "
            f"{', '.join(_KNOWN)}); set engine.kv_cache_dtype to serve it with another"
        )
    return str(asked)
