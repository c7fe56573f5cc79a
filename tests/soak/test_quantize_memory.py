"""A model of 7B weights is quantized and judged in the memory of one layer, not of the model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from report import Report
from safetensors.torch import save_file
from tiny_models import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.soak
# Llama 2 7B's shape.
SHAPE: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
ALL_LAYERS = 32
GIB = 2**30
BURRSTONE = str(Path(sys.executable).with_name("burrstone"))


def random_model(folder: Path, num_layers: int) -> Path:
    """Written layer by layer, for it need not fit in memory either."""
    config = AutoConfig.for_model("llama", **SHAPE, num_hidden_layers=num_layers, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    files: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        part = name.split(".")[2] if ".layers." in name else "frame"
        files.setdefault(f"model-{part}.safetensors", {})[name] = shape
    for file, names in files.items():
        save_file({name: random_tensor(shape) for name, shape in names.items()}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def random_tensor(shape: torch.Size) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 1.0 / shape[-1] ** 0.5)


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    if shutil.disk_usage(tmp_path).free < 40 * GIB:
        pytest.skip("needs 40 GiB of disk")
    yield tmp_path
    shutil.rmtree(tmp_path)


def burrstone(*words: str | Path) -> dict[str, Any]:
    done = subprocess.run([BURRSTONE, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_7b_model_is_rounded_in_less_memory_than_its_weights_take(space: Path, report: Report) -> None:
    source = random_model(space / "source", ALL_LAYERS)
    made = burrstone("quantize", source, "-o", space / "out", "--method", "rtn", "--json")
    figures = {name: made[name] for name in ("bytes_before", "bytes_after", "peak_memory_bytes", "elapsed_s")}
    report.record("7B, rtn", figures)
    assert made["bytes_before"] > 13 * 10**9
    # Counts the pages of files that are being read, which the kernel takes back when memory is short.
    assert made["peak_memory_bytes"] < 0.6 * made["bytes_before"]


def test_layers_more_do_not_take_memory_more(space: Path, report: Report) -> None:
    peaks = {}
    for num_layers in (1, 3):
        source = random_model(space / f"source-{num_layers}", num_layers)
        words = ("--calibration", "smoke", "--rows", "16", "--row-tokens", "256", "--json")
        made = burrstone("quantize", source, "-o", space / f"out-{num_layers}", *words)
        peaks[num_layers] = made["peak_memory_bytes"]
        report.record(f"{num_layers} layers of a 7B model, smoothquant+gptq", made)
    # A layer is 0.8 GB in float32.
    assert peaks[3] < peaks[1] + 0.4 * GIB
    assert peaks[3] < 12 * GIB
