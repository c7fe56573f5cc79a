"""Our configuration -> vLLM's engine arguments and the namespace its serving objects are built from."""

import argparse
import dataclasses
import difflib
from typing import Any

from burrstone.serving.config import ConfigError, EngineConfig, ServeConfig
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.cpu import block_tokens
from burrstone.serving.engine.kernels import kernel_arguments
from burrstone.serving.engine.kv_cache import kv_cache_dtype
from burrstone.serving.engine.models import ResolvedModel, default_tool_parser
from burrstone.serving.engine.scheduling.options import SCHEDULER_CLS

# Fields that would open what this server keeps closed, with the reason to give.
_CLOSED = {
    "trust_remote_code": "code from a model repository is never run",
    "enable_prompt_embeds": "embeddings from clients reach torch.load",
    "enable_log_requests": "use observability.log_request_text",
    "allowed_local_media_path": "local files are never read for a client",
}
# Fields that have a key of their own, whose checks `vllm_args` would go around.
_OWN_KEY = {
    "model": "model",
    "served_model_name": "served_names",
    "max_logprobs": "limits.max_logprobs",
    "kv_cache_memory_bytes": "engine.kv_cache_gib",
    "speculative_config": "engine.speculative",
    "enable_lora": "engine.lora.modules",
    "max_lora_rank": "engine.lora.max_rank",
    "max_loras": "engine.lora.max_active",
    "scheduler_cls": "scheduler.policy",
    "scheduling_policy": "scheduler.policy",
    **{name: f"engine.{name}" for name in EngineConfig.model_fields if name not in ("speculative", "lora", "kernels")},
}


def engine_arguments(config: ServeConfig, model: ResolvedModel, *, kv_cache_bytes: int | None) -> Any:
    """vLLM's AsyncEngineArgs. `config.profile` is a real one.

    Raises ConfigError for a vllm_args key that vLLM does not have or that we keep closed, and for a KV cache that the
    checkpoint asks for and the profile does not have.
    """
    engine = config.engine
    kv_dtype = kv_cache_dtype(config, model.config)
    arguments: dict[str, Any] = {
        "model": model.path,
        "served_model_name": list(config.served_names or model.served_names),
        "dtype": engine.dtype,
        "seed": engine.seed,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "enable_chunked_prefill": engine.enable_chunked_prefill,
        "kv_cache_dtype": kv_dtype,
        "enforce_eager": engine.enforce_eager,
        "max_logprobs": config.limits.max_logprobs,
        "disable_log_stats": False,
        "reasoning_parser": engine.reasoning_parser or "",
    }
    optional = {
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "quantization": engine.quantization,
        "kv_cache_memory_bytes": kv_cache_bytes,
        "block_size": block_tokens(model.config) if config.profile == "cpu" else None,
        "speculative_config": _speculative(engine),
        "scheduler_cls": None if config.scheduler.stock else SCHEDULER_CLS,
    }
    arguments |= {key: value for key, value in optional.items() if value is not None}
    if engine.lora.modules:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": engine.lora.max_rank,
            "max_loras": min(engine.lora.max_active, len(engine.lora.modules)),
        }
    return vllm.AsyncEngineArgs(**(arguments | _extra_arguments(engine) | kernel_arguments(config, kv_dtype)))


def serving_arguments(config: ServeConfig, model: ResolvedModel, engine_args: Any) -> argparse.Namespace:
    """What vLLM's own front end would be given on its command line."""
    parser = config.engine.tool_call_parser
    if parser == "auto":
        parser = default_tool_parser(model.config)
    return vllm.frontend_arguments(
        engine_args,
        lora_modules=[
            vllm.LoRAModulePath(name=module.name, path=str(module.path.expanduser()))
            for module in config.engine.lora.modules
        ],
        chat_template=None if config.engine.chat_template is None else str(config.engine.chat_template),
        enable_auto_tool_choice=parser is not None,
        tool_call_parser=parser,
        enable_prompt_tokens_details=True,
        enable_log_requests=config.observability.log_request_text,
    )


def _speculative(engine: EngineConfig) -> dict[str, Any] | None:
    spec = engine.speculative
    if spec is None:
        return None
    arguments: dict[str, Any] = {"method": spec.method, "num_speculative_tokens": spec.num_tokens}
    if spec.model is not None:
        arguments["model"] = spec.model
    if spec.method == "ngram":
        arguments |= {"prompt_lookup_max": spec.prompt_lookup_max, "prompt_lookup_min": spec.prompt_lookup_min}
    return arguments


def _extra_arguments(engine: EngineConfig) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(vllm.AsyncEngineArgs)}
    for key in engine.vllm_args:
        if key in _CLOSED:
            raise ConfigError(f"engine.vllm_args.{key} is not allowed: {_CLOSED[key]}")
        if key in _OWN_KEY:
            raise ConfigError(f"engine.vllm_args.{key} is not allowed: set {_OWN_KEY[key]}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"engine.vllm_args.{key}: vLLM has no such engine argument{hint}")
    return engine.vllm_args
