"""What every engine process finds in its environment, whatever the hardware."""

from collections.abc import Mapping

from burrstone.batching.core.environment import CACHE_ENV
from burrstone.serving.config import ServeConfig


def shared_environment(config: ServeConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Caches under cache_dir, and no telemetry. What the user has set already is kept."""
    cache = config.cache_dir.expanduser()
    wanted = {
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        CACHE_ENV: str(cache),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {key: environ.get(key, value) for key, value in wanted.items()}
