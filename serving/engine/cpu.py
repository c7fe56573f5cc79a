"""The CPU profile: the environment and the memory that make vLLM fast on a machine without accelerators.

Measured on two cores with the 135M model (tokens/s at 1 and 32 streams): vLLM's defaults 47 / 676, both cores bound
52 / 831, the compiled artifact loaded 60 / 889, libiomp5 73 / 997, tcmalloc 75 / 1069. See docs/performance.md.
"""

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.engine.environment import shared_environment
from burrstone.serving.hardware import Hardware

# Below this many cores, one kept free for the front end costs more than it brings.
_BIND_ALL_UP_TO = 16
# Every page is touched at start (about 2 s a GiB), so more than is useful costs every start.
_KV_CONTEXTS = 4
_KV_DEFAULT_CONTEXT = 4096
_KV_SHARE = 0.2
_KV_MIN_BYTES = 256 * 2**20
# vLLM takes 128 on the CPU. Smaller blocks reuse more of a prefix, whose last part block is always computed again, and
# 32, the least that its attention kernels take, was as fast (docs/performance.md).
_BLOCK_TOKENS = 32
# What vLLM's CPU attention declares, and the 16 bits that "auto" may stand for.
_KV_DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")
_TCMALLOC = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")


def cpu_environment(config: ServeConfig, hardware: Hardware, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the engine's processes need in their environment. What the user has set already is kept."""
    wanted = {
        "VLLM_CPU_OMP_THREADS_BIND": omp_binding(hardware.cores, config.engine.tensor_parallel_size),
        "VLLM_HOST_IP": "127.0.0.1",  # one machine: the engine's processes talk over loopback only
    }
    environment = shared_environment(config, environ) | {key: environ.get(key, value) for key, value in wanted.items()}
    preload = [path for path in (libiomp5(), tcmalloc()) if path is not None]
    already = environ.get("LD_PRELOAD", "").replace(":", " ").split()
    if libiomp5() is not None:
        # Two OpenMP runtimes in one process: vLLM stops at its start.
        already = [path for path in already if not Path(path).name.startswith("libgomp")]
    environment["LD_PRELOAD"] = ":".join([*already, *map(str, preload)])
    return environment


def omp_binding(cores: tuple[int, ...], num_workers: int) -> str:
    """Cores of each worker: `0-1` for one, `0|1` for two. Raises ConfigError when there are fewer cores than workers."""
    if len(cores) < num_workers:
        raise ConfigError(
            f"engine.tensor_parallel_size is {num_workers} but only {len(cores)} cores can be used; lower it"
        )
    if len(cores) > _BIND_ALL_UP_TO and num_workers == 1:
        return "auto"
    per_worker = len(cores) // num_workers
    groups = [cores[i * per_worker : (i + 1) * per_worker] for i in range(num_workers)]
    return "|".join(",".join(map(str, group)) for group in groups)


def kv_cache_bytes(config: ServeConfig, hardware: Hardware, model_config: Mapping[str, Any]) -> int:
    """Bytes of KV cache: as configured, else room for four full contexts within a fifth of the free memory."""
    if config.engine.kv_cache_gib is not None:
        return int(config.engine.kv_cache_gib * 2**30)
    context = config.engine.max_model_len or model_config.get("max_position_embeddings", _KV_DEFAULT_CONTEXT)
    wanted = _KV_CONTEXTS * int(context) * kv_bytes_per_token(model_config)
    return max(_KV_MIN_BYTES, min(wanted, int(hardware.memory_bytes * _KV_SHARE)))


def kv_bytes_per_token(model_config: Mapping[str, Any]) -> int:
    """Keys and values of one token in all layers, at two bytes an element."""
    heads = int(model_config.get("num_attention_heads", 32))
    head_dim = model_config.get("head_dim") or int(model_config.get("hidden_size", 4096)) // heads
    kv_heads = int(model_config.get("num_key_value_heads") or heads)
    return 2 * 2 * int(model_config.get("num_hidden_layers", 32)) * kv_heads * int(head_dim)


def block_tokens(model_config: Mapping[str, Any]) -> int | None:
    """Tokens of a KV block, None where vLLM allows its own number only: multi-head latent attention (DeepSeek)."""
    text_config = model_config.get("text_config") or model_config
    return None if text_config.get("kv_lora_rank") or text_config.get("model_type") == "deepseek_v4" else _BLOCK_TOKENS


def check_cpu(config: ServeConfig, hardware: Hardware) -> None:
    """Refuse what this machine cannot hold, and what vLLM accepts on the CPU and then gets wrong."""
    gib = config.engine.kv_cache_gib
    if gib is not None and gib * 2**30 > hardware.memory_bytes:
        raise ConfigError(
            f"engine.kv_cache_gib asks for {gib:g} GiB but {hardware.memory_bytes / 2**30:.1f} GiB are free; lower it"
        )
    if wrong_on_cpu(config.engine.kv_cache_dtype):
        raise ConfigError(
            f"engine.kv_cache_dtype {config.engine.kv_cache_dtype!r} is none that vLLM's CPU backend computes (it may take "
            f"it and give wrong answers); use auto or fp8 (there are {', '.join(_KV_DTYPES)})"
        )
    if config.engine.dtype == "float32" and config.engine.kv_cache_dtype in ("bfloat16", "float16"):
        raise ConfigError(
            f"engine.kv_cache_dtype {config.engine.kv_cache_dtype!r} gives wrong answers on the CPU with engine.dtype "
            "float32; use auto or fp8"
        )


def wrong_on_cpu(kv_cache_dtype: str) -> bool:
    """Whether vLLM takes this type on the CPU, perhaps without an error, and then crashes or computes wrong answers."""
    return kv_cache_dtype not in _KV_DTYPES


def libiomp5() -> Path | None:
    """Intel's OpenMP runtime, which the intel-openmp wheel puts into the environment's lib folder."""
    path = Path(sys.prefix) / "lib" / "libiomp5.so"
    return path if path.is_file() else None


def tcmalloc() -> Path | None:
    """The system's tcmalloc, if installed (Debian: libtcmalloc-minimal4)."""
    triplet = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    folders = [Path("/usr/lib") / triplet, Path("/lib") / triplet, Path("/usr/lib64"), Path("/usr/lib")]
    for folder in folders:
        for name in _TCMALLOC:
            if (folder / name).is_file():
                return folder / name
    return None
