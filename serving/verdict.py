"""Whether a model's evaluation lets it be served. Another room judges models and keeps the verdicts; it is asked by entry point."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from burrstone.serving.config import ConfigError, EngineConfig, ServeConfig
from burrstone.serving.engine.kv_cache import checkpoint_kv_cache_dtype
from burrstone.serving.engine.models import ResolvedModel

QUALITY_GROUP = "burrstone.checkpoint_quality"
QUALITY_FILE = "quality.json"
_PASSED = "passed"
# vLLM's arguments that change how fast, how many and how observed, and not what is computed from the files that were judged.
HARMLESS = (
    *("async_scheduling", "block_size", "cudagraph_capture_sizes", "data_parallel_size", "disable_log_stats"),
    *(
        "enable_log_requests",
        "enable_sleep_mode",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "kv_cache_metrics",
    ),
    *("kv_events_config", "long_prefill_token_threshold", "max_cudagraph_capture_size", "max_logprobs"),
    *("max_num_queued_reqs", "max_num_queued_tokens", "max_num_scheduled_tokens", "max_parallel_loading_workers"),
    *("num_gpu_blocks_override", "otlp_traces_endpoint", "pipeline_parallel_size", "prefix_caching_hash_algo"),
    *("scheduling_policy", "shutdown_timeout", "stream_interval", "watermark"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`state` is none, passed, failed, stale, unreadable or unknown; `text` says it to people in a line.

    `stamp` is of the files it was found on; None for a hub id, whose files nobody has judged.
    """

    state: str
    text: str
    stamp: str | None

    @property
    def line(self) -> str:
        return self.text if self.text.startswith(self.state) else f"{self.state}: {self.text}"


def examine(config: ServeConfig, model: ResolvedModel, say: Callable[[str], None]) -> Verdict:
    """How the model stands. Reads all weights of one that was evaluated.

    Raises ConfigError under `require_verdict` unless these very files have passed and nothing else is loaded.
    """
    if config.require_verdict:
        _check_nothing_replaced(config.engine, model)
    verdict = _hub_verdict(model.path) if model.folder is None else _folder_verdict(model.folder, say)
    if config.require_verdict and verdict.state != _PASSED:
        raise ConfigError(
            f"require_verdict is on, and the verdict on {model.path} is {verdict.line}. "
            "Serve a checkpoint that `burrstone quantize eval` has passed, or set require_verdict to false"
        )
    return verdict


def examine_again(config: ServeConfig, model: ResolvedModel, stamp: str | None, say: Callable[[str], None]) -> None:
    """In the replica, which may be a replacement hours later: weights are read again only where a file has changed.

    Raises ConfigError as `examine` does. `stamp` is that of the verdict on which the start was decided.
    """
    if config.require_verdict and (model.folder is None or stamp != files_stamp(model.folder)):
        examine(config, model, say)


def shown(verdict: Verdict, model: ResolvedModel) -> str | None:
    """The verdict in a line, or None where there is nothing to tell: a model that nobody quantized or evaluated here."""
    quantized = "quantization_config" in model.config or "burrstone" in model.config
    return verdict.line if model.folder is not None and (quantized or _evaluated(model.folder)) else None


def warning(verdict: Verdict, model: ResolvedModel) -> str | None:
    """What to say aloud about a model that is served although its evaluation does not speak for it."""
    if model.folder is None or not _evaluated(model.folder) or verdict.state == _PASSED:
        return None
    return f"the verdict on {model.path} is {verdict.line}. It is served all the same; require_verdict would refuse it"


def files_stamp(folder: Path) -> str:
    """Differs after any change to the folder's files: names, inodes, sizes, times of change."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    return repr([(name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found])


def _folder_verdict(folder: Path, say: Callable[[str], None]) -> Verdict:
    stamp = files_stamp(folder)  # before the files are read: what changes meanwhile then shows
    found = entry_points(group=QUALITY_GROUP, name="quality")
    if len(found) != 1:
        text = f"this environment has {len(found)} entry points {QUALITY_GROUP}, not one; run `make setup`"
        return Verdict("unknown", text, stamp)
    (entry,) = found
    try:
        standing = entry.load()
    except (ImportError, AttributeError) as error:
        return Verdict(
            "unknown", f"the entry point {QUALITY_GROUP} cannot be loaded ({error}); run `make setup`", stamp
        )
    try:
        if _evaluated(folder):
            num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            say(f"reading the verdict on {folder.name}: hashing {num_bytes / 2**30:.1f} GiB")
        state, text = standing(folder)
    except OSError as error:
        return Verdict("unreadable", f"a file of the model cannot be read ({error})", stamp)
    return Verdict(state, text, stamp)


def _hub_verdict(hub_id: str) -> Verdict:
    text = f"none: a hub id has no files to judge; download it first (`hf download {hub_id} --local-dir FOLDER`)"
    return Verdict("none", text, None)


def _evaluated(folder: Path) -> bool:
    return (folder / QUALITY_FILE).is_file()


def _check_nothing_replaced(engine: EngineConfig, model: ResolvedModel) -> None:
    set_here = [f"engine.vllm_args.{key}" for key in engine.vllm_args if key not in HARMLESS]
    set_here += ["engine.quantization"] if engine.quantization is not None else []
    # The cache is part of what was judged: in 16 bits, or as the checkpoint asks.
    judged = ("auto", checkpoint_kv_cache_dtype(model.config))
    set_here += ["engine.kv_cache_dtype"] if engine.kv_cache_dtype not in judged else []
    if set_here:
        raise ConfigError(
            f"require_verdict is on, and {', '.join(set_here)} may compute something else than what the verdict is about; "
            "leave it out, or set require_verdict to false"
        )
