"""The servers that a comparison can start, by name: the same model, with the same engine arguments where they have them."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from burrstone.batching.errors import UsageError
from burrstone.bench.peers.models import Models
from burrstone.bench.peers.servers import Launch, free_port
from burrstone.serving.config import ServeConfig
from burrstone.serving.engine.cpu import block_tokens
from burrstone.serving.hardware import detect
from burrstone.serving.launch import engine_environment

MODEL = "default"
MAX_MODEL_LEN = 2048
KV_GIB = 1.0
# Said to all, because what a server does by itself depends on how it starts vLLM.
MAX_NUM_SEQS = 128
MAX_NUM_BATCHED_TOKENS = 2048
# llama.cpp divides its context among its slots.
_SLOTS, _SLOT_TOKENS = 32, 512


@dataclass(frozen=True, slots=True)
class Peer:
    """`text`: what it is, and how it differs. `precision`: of weights and arithmetic."""

    text: str
    precision: str
    launch: Callable[[Models], Launch]


def missing(name: str) -> str | None:
    """Why a peer cannot be started on this machine."""
    if name == "llama.cpp" and shutil.which("llama-server") is None:
        return "no llama-server in PATH"
    if name == "ray-serve-llm" and find_spec("pyarrow") is None:
        return "it needs pyarrow: `.venv/bin/pip install -r requirements/peers.txt`, or `make bench`"
    return None


def engine_recipe() -> dict[str, str]:
    """The environment that burrstone gives its engine on this machine."""
    return dict(engine_environment(ServeConfig(), detect()))


def engine_block_tokens(folder: str) -> int | None:
    """Tokens of a KV block that burrstone asks vLLM for on this machine, None where it leaves them to vLLM."""
    if detect().profile != "cpu":
        return None
    return block_tokens(json.loads((Path(folder) / "config.json").read_bytes()))


def burrstone(model: str, *more: str, grpc_port: int | None = None) -> Launch:
    """model: folder or name; more: flags of `serve`."""
    port = free_port()
    ours = [sys.executable, "-m", "burrstone.serving.cli.main", "serve", model]
    ours += ["--http-port", str(port), "--grpc-port", str(grpc_port or free_port())]
    ours += ["--max-model-len", str(MAX_MODEL_LEN), "--engine.kv-cache-gib", str(KV_GIB)]
    ours += ["--engine.max-num-seqs", str(MAX_NUM_SEQS)]
    ours += ["--engine.max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS)]
    return Launch([*ours, "--engine.dtype", "bfloat16", *more], port, "/ready")


def vllm(folder: str, *, recipe: bool) -> Launch:
    """vLLM's own API server; recipe: in the environment that burrstone gives its engine."""
    port = free_port()
    bare = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", folder]
    bare += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    bare += ["--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory-bytes", str(int(KV_GIB * 2**30))]
    bare += ["--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS)]
    bare += ["--seed", "0", "--enable-prompt-tokens-details", "--max-logprobs", "20", "--disable-uvicorn-access-log"]
    if recipe and (tokens := engine_block_tokens(folder)) is not None:
        bare += ["--block-size", str(tokens)]
    return Launch(bare, port, "/health", engine_recipe() if recipe else {})


def _ray_serve_llm(models: Models) -> Launch:
    port = free_port()
    command = [sys.executable, "-m", "burrstone.bench.peers.ray_serve_llm", models.folder, str(port)]
    return Launch(command, port, "/v1/models", engine_recipe())


def _llama_cpp(models: Models) -> Launch:
    port = free_port()
    command = [shutil.which("llama-server") or "llama-server", "--model", models.q8_gguf, "--alias", MODEL]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--parallel",
        str(_SLOTS),
        "--threads",
        str(len(detect().cores)),
    ]
    return Launch([*command, "--ctx-size", str(_SLOTS * _SLOT_TOKENS)], port, "/health")


# In the order they are measured: those that are compared stand together, so that a machine that slows down slows both.
PEERS = {
    "burrstone": Peer("burrstone", "bfloat16", lambda models: burrstone(models.folder)),
    "vllm": Peer(
        "vLLM's own server, with burrstone's engine arguments and environment",
        "bfloat16",
        lambda models: vllm(models.folder, recipe=True),
    ),
    "burrstone-int8": Peer("burrstone, layers and head in INT8", "W8A8 INT8", lambda models: burrstone(models.int8)),
    "vllm-default": Peer(
        "vLLM's own server as it comes: the same arguments, no environment",
        "bfloat16",
        lambda models: vllm(models.folder, recipe=False),
    ),
    "llama.cpp": Peer(
        f"llama.cpp's llama-server from PATH, {_SLOTS} slots; it has no W8A8, its nearest is Q8_0",
        "Q8_0 (blocks of 32 in eight bits)",
        _llama_cpp,
    ),
    "ray-serve-llm": Peer(
        "ray.serve.llm's OpenAI app, with the engine arguments and environment of `vllm`", "bfloat16", _ray_serve_llm
    ),
}


def check(names: Iterable[str]) -> None:
    """Raises UsageError for a name that no peer has, or one that cannot be started here."""
    for name in names:
        if name not in PEERS:
            raise UsageError(f"no peer is called {name!r}; there are {', '.join(PEERS)}")
        if reason := missing(name):
            raise UsageError(f"{name}: {reason}")
