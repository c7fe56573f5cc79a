"""Reading a Hugging Face checkpoint tensor by tensor, so that a model is never in memory as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from burrstone.quant.errors import BadCheckpoint, UnsupportedModel

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Weights in other forms, and what is written anew: not copied with the tokenizer and the rest.
_NOT_COPIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", INDEX_FILE)
# With params.json beside them vLLM would look for Mistral's own layout of weights.
_WRITTEN_ANEW = ("config.json", "params.json", "README.md", "quality.json", "quantization.json")
_MISTRALS_OWN = "consolidated*.safetensors"
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class Checkpoint:
    """A folder with config.json and safetensors weights. Raises BadCheckpoint for one that is incomplete or damaged.

    name: what people call it, a hub id perhaps; the folder's where none is given.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.name
        self.config = _read_object(folder / "config.json")
        self._file_of = _tensor_files(folder)

    @property
    def names(self) -> list[str]:
        """The tensors' names, sorted."""
        return sorted(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str) -> Tensor:
        """One tensor, as it is stored. Raises BadCheckpoint when there is none of that name."""
        if name not in self._file_of:
            raise BadCheckpoint(f"{self.folder} has no tensor {name}, which its architecture needs")
        with _opened(self._file_of[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names start with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): self.tensor(name) for name in self.names if name.startswith(prefix)}

    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in set(self._file_of.values()))

    def companions(self) -> Iterator[Path]:
        """The tokenizer and whatever else belongs to the model, without weights and what a quantizer writes anew."""
        for file in sorted(self.folder.iterdir()):
            left_out = file.name.startswith(".") or file.name in _WRITTEN_ANEW
            if file.is_file() and not left_out and not any(file.match(pattern) for pattern in _NOT_COPIED):
                yield file


def refuse_second_weights(folder: Path) -> None:
    """Raises BadCheckpoint for weights that vLLM would load in place of those that are read here."""
    if found := sorted(file.name for file in folder.glob(_MISTRALS_OWN)):
        raise BadCheckpoint(
            f"{folder} holds {found[0]}, which vLLM loads in place of the weights that would be judged; move it away"
        )


def tensor_bytes(file: Path) -> dict[str, int]:
    """Tensor -> its size in a safetensors file, by the file's header: a length of 8 bytes, then JSON. Reads no tensor."""
    with file.open("rb") as source:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
    return {
        name: end - start
        for name, part in header.items()
        if name != "__metadata__"
        for start, end in [part["data_offsets"]]
    }


def find_checkpoint(model: str) -> Path:
    """The folder `model`, or the local snapshot of a hub id. Raises BadCheckpoint."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise BadCheckpoint(f"model {model!r} is neither a folder that exists nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadCheckpoint(
            f"model {model!r} cannot be had from the hub ({reason}); check the name and the network, "
            "and set HF_TOKEN for a gated model"
        ) from error


def refuse_unsupported(config: dict[str, Any], where: Path) -> None:
    """Raises UnsupportedModel for what is known not to work before any weight is read."""
    if "auto_map" in config:
        raise UnsupportedModel(f"{where} has `auto_map`, code of its own to run; such models are not quantized")
    # A model of text and pictures keeps the text model's keys in an object of their own.
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    experts = [part[key] for part in parts for key in _EXPERT_KEYS if part.get(key) is not None]
    if any(not isinstance(number, int) or number > 1 for number in experts):
        raise UnsupportedModel(
            f"{where} is a mixture of experts ({config.get('model_type')}); only dense models are quantized here"
        )


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor -> its file; every file's header has been read."""
    index = folder / INDEX_FILE
    weight_map: dict[str, str] = {}
    if index.is_file():
        weight_map = _read_object(index).get("weight_map") or {}
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise BadCheckpoint(f"{index}: weight_map does not give each tensor the name of a file")
        if not weight_map:
            raise BadCheckpoint(f"{index} has no weight_map")
        files = [folder / str(name) for name in sorted(set(weight_map.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadCheckpoint(f"{folder} has no *.safetensors weights; convert the checkpoint to safetensors first")
    found: dict[str, Path] = {}
    for file in files:
        with _opened(file) as opened:
            found |= dict.fromkeys(opened.keys(), file)
    if missing := sorted(set(weight_map) - set(found)):
        raise BadCheckpoint(f"{index} names {missing[0]} and {len(missing) - 1} more tensors that no file holds")
    return found


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{file} cannot be read ({error}); it is damaged, fetch it again") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{file} is missing; give a Hugging Face model folder") from error
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{file} holds no JSON object")
    return content
