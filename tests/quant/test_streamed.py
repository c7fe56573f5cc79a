"""One layer at a time computes exactly what transformers computes with all of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import edit_json, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import BadCheckpoint, BadData, UnsupportedModel
from burrstone.quant.kv_cache import INT8_PER_TOKEN_HEAD
from burrstone.quant.rounding import round_tokens
from burrstone.quant.streamed import StreamedModel

TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(1))


def logits_of(model: StreamedModel, tokens: Tensor = TOKENS) -> Tensor:
    batch = model.embed(tokens)
    for index in range(model.num_layers):
        with model.layer(index) as layer:
            batch.hidden = model.apply(layer, index, batch)
    return torch.stack([model.logits(batch, row) for row in range(len(tokens))])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
def test_logits_are_those_of_transformers(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / kind, kind, tie_word_embeddings=tied)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = torch.cat([whole(TOKENS[row : row + 1]).logits for row in range(len(TOKENS))])
    model = StreamedModel(Checkpoint(folder))
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    # A second pass finds the model as the first one did.
    assert torch.equal(logits_of(model), logits_of(model))


def test_no_layer_stays_in_memory(tmp_path: Path) -> None:
    model = StreamedModel(Checkpoint(tiny_model(tmp_path / "tiny")))
    with model.layer(1) as layer:
        assert not any(parameter.is_meta for parameter in layer.parameters())
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_with_all_layers_in_memory_it_generates_as_transformers(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = StreamedModel(Checkpoint(folder))
    with torch.inference_mode(), model.resident() as resident:
        got, expected = resident(TOKENS).logits, whole(TOKENS).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert logits_of(model).shape == expected.shape


def test_an_int8_cache_rounds_what_attention_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path / "tiny")
    plain = logits_of(StreamedModel(Checkpoint(folder)))
    edit_json(folder / "config.json", burrstone={"kv_cache_dtype": INT8_PER_TOKEN_HEAD})
    rounded = logits_of(StreamedModel(Checkpoint(folder)))
    error = float((rounded - plain).norm() / plain.norm())
    assert 1e-4 < error < 5e-2
    # The same by hand: keys and values rounded where transformers' own attention takes them.
    from transformers.models.llama import modeling_llama as llama

    real = llama.ALL_ATTENTION_FUNCTIONS.get_interface

    def rounding(*names: object) -> object:
        attend = real(*names)
        return lambda module, query, key, value, *rest, **named: attend(
            module, query, round_tokens(key), round_tokens(value), *rest, **named
        )

    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    monkeypatch.setattr(llama.ALL_ATTENTION_FUNCTIONS, "get_interface", rounding)
    with torch.inference_mode():
        torch.testing.assert_close(rounded, whole(TOKENS, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def change(folder: Path, name: str, tensor: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "layer 1 has no tensor mlp.up_proj.weight"),
        ("model.norm.weight", None, "has no tensor model.norm.weight"),
        ("model.layers.0.mlp.extra.weight", torch.ones(2), "mlp.extra.weight is no part"),
        ("model.extra", torch.ones(2), "model.extra is no part"),
        ("model.layers.2.mlp.up_proj.weight", torch.ones(3, 64), "size mismatch for mlp.up_proj.weight"),
        ("model.layers.7.mlp.up_proj.weight", torch.ones(2), "layer 7, but config.json says 3 layers"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, tensor: Tensor | None, told: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    change(folder, name, tensor)
    with pytest.raises(BadCheckpoint, match=told.replace(".", r"\.")):
        logits_of(StreamedModel(Checkpoint(folder)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code of its own"),
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"model_type": "gpt2"}, "gpt2"),
    ],
)
def test_what_is_not_quantized_here_is_refused(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UnsupportedModel, match=told):
        StreamedModel(Checkpoint(folder))


def test_tokens_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    model = StreamedModel(Checkpoint(tiny_model(tmp_path / "tiny")))
    with pytest.raises(BadData, match="token 999 of its tokenizer is beyond its 257 embeddings"):
        model.embed(torch.tensor([[1, 999]]))
