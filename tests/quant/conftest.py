"""Importing vLLM's layers writes into the environment, which the servers of other tests inherit; and it warns."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from quant_runs import INT8_LAYERS
from safetensors.torch import load_file, save_file
from tiny_models import edit_json

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.engine import vllm_compat
from burrstone.quant.job import Job
from burrstone.quant.progress import SilentBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import load_tokens
from burrstone.serving.engine.models import embedded_model

_before = dict(os.environ)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for _name in vllm_compat.__all__:
        getattr(vllm_compat, _name)
os.environ.clear()
os.environ.update(_before)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes that runs are compared with: the number of threads is part of what decides the bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """vLLM's configuration, once made, preloads libraries into every later process of ours."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def int8_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layers of the embedded model: smoothed, rounded by GPTQ, with one layer kept and an INT8 head."""
    from transformers import AutoTokenizer

    source, folder = embedded_model(Path("~/.cache/burrstone").expanduser()), tmp_path_factory.mktemp("int8")
    short = folder / "short"
    short.mkdir()
    for file in Checkpoint(source).companions():
        (short / file.name).write_bytes(file.read_bytes())
    (short / "config.json").write_text((source / "config.json").read_text())
    edit_json(short / "config.json", num_hidden_layers=INT8_LAYERS)
    tensors = load_file(source / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if ".layers." not in name or int(name.split(".")[2]) < INT8_LAYERS}
    save_file(kept, short / "model.safetensors", metadata={"format": "pt"})
    tokens = load_tokens("smoke", AutoTokenizer.from_pretrained(short), rows=4, length=64, split="calibration")
    recipe = Recipe(keep=("model.layers.1.mlp.*",), quantize_lm_head=True)
    Job(Checkpoint(short), folder / "out", recipe, tokens, SilentBar()).run()
    return folder / "out"
