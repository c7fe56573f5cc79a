"""Language models of a few thousand weights, made on the spot: bytes are their tokens, and they run in milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 257,
    "max_position_embeddings": 512,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": None,
}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def tiny_model(
    folder: Path, model_type: str = "llama", *, seed: int = 0, dtype: str = "bfloat16", **changes: Any
) -> Path:
    """A random model of an architecture that transformers knows ("llama", "qwen2", "gemma3_text", ...) in `folder`."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **_SIZES | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Sharper than a new model's nearly uniform answers, so that rounding shows.
            if parameter.dim() == 2:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and <end>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)} | {"<end>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def plant_outliers(folder: Path, *, channels: int = 4, factor: float = 64.0) -> None:
    """Make a few channels of every norm's output `factor` times larger, and their readers' weights as much smaller.

    What the model computes stays the same (a power of two changes no digit); what an INT8 activation can hold does not.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[:channels] *= factor
                for reader in readers:
                    reader.weight[:, :channels] /= factor
    model.save_pretrained(folder)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON object in place."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
