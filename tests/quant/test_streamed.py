"""One layer at a time computes exactly what transformers computes with all of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import edit_json, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from burrstone.quant import streamed
from burrstone.quant.checkpoint import INDEX_FILE, Checkpoint
from burrstone.quant.errors import BadCheckpoint, BadData, UnsupportedModel
from burrstone.quant.formats import BNB, NEURON, SCHEMES, W8A8, W8A16, Format, Scheme
from burrstone.quant.job import Job
from burrstone.quant.kv_cache import INT8_PER_TOKEN_HEAD
from burrstone.quant.layer_job import quantize_layer
from burrstone.quant.progress import SilentBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.rounding import quantize, round_tokens, weight_scale
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
    # A window shorter than the text, for those that have one.
    window: dict[str, Any] = {"sliding_window": 8} if kind in ("mistral", "gemma3_text") else {}
    if kind == "gemma3_text":
        window["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    folder = tiny_model(tmp_path / kind, kind, tie_word_embeddings=tied, **window)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = torch.cat([whole(TOKENS[row : row + 1]).logits for row in range(len(TOKENS))])
    model = StreamedModel(Checkpoint(folder))
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    # Of one row, to the last bit.
    for row in range(len(TOKENS)):
        assert torch.equal(logits_of(model, TOKENS[row : row + 1])[0], expected[row])
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


def test_the_window_of_sliding_attention_is_seen(tmp_path: Path) -> None:
    for kind in ("mistral", "gemma3_text"):
        narrow, wide = (
            logits_of(StreamedModel(Checkpoint(tiny_model(tmp_path / f"{kind}{size}", kind, sliding_window=size))))
            for size in (8, 64)
        )
        assert torch.allclose(narrow[:, :8], wide[:, :8], atol=1e-4)
        assert not torch.allclose(narrow[:, 9:], wide[:, 9:], atol=1e-2)


def test_shards_and_a_stored_copy_of_a_tied_head_are_read_alike(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", tie_word_embeddings=True)
    wanted = logits_of(StreamedModel(Checkpoint(folder)))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in shards.items():
        save_file({name: tensors[name] for name in mine}, folder / file)
    weight_map = {name: file for file, mine in shards.items() for name in mine}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    model = StreamedModel(Checkpoint(folder))
    assert torch.equal(logits_of(model), wanted)
    assert model.prefix(2) == "model.layers.2."
    assert model.frame_names() == ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]


def in_int8(folder: Path, out: Path, scheme: Scheme, **recipe: Any) -> Path:
    Job(Checkpoint(folder), out, Recipe(scheme.name, "rtn", **recipe), None, SilentBar()).run()
    return out


@pytest.mark.parametrize(("kind", "head"), [("llama", True), ("qwen2", False), ("gemma3_text", False)])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_int8_checkpoints_compute_as_transformers_with_int8_layers(
    kind: str, scheme: Scheme, head: bool, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "tiny", kind)
    made = in_int8(folder, tmp_path / "out", scheme, quantize_lm_head=head)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parts = {name: part for name, part in whole.named_modules() if isinstance(part, nn.Linear)}
    for name, part in parts.items():
        if head or name != "lm_head":
            scale = weight_scale(part.weight.detach()).to(scheme.scale_dtype).float()
            rounded = scheme.linear(quantize(part.weight.detach(), scale), scale, part.bias)
            parent, _, child = name.rpartition(".")
            setattr(whole.get_submodule(parent), child, rounded)
    with torch.inference_mode():
        expected = whole(TOKENS[:1]).logits
    model = StreamedModel(Checkpoint(made))
    torch.testing.assert_close(logits_of(model, TOKENS[:1]), expected, rtol=1e-4, atol=1e-3)
    # The modules that stood there before are back, and without weights.
    assert set(model.layer_modules(0)) == {n.split(".", 3)[3] for n in parts if n.startswith("model.layers.0.")}


@pytest.mark.parametrize("scheme", [W8A8, W8A16], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "gemma3_text",
        "qwen2",
    ],
)
def test_a_quantized_layer_computes_as_the_stored_one_will(kind: str, scheme: Scheme, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", kind)
    model = StreamedModel(Checkpoint(folder))
    batch = model.embed(TOKENS)
    with model.layer(0) as layer:
        stored = quantize_layer(model, layer, 0, [batch], Recipe(scheme.name)).tensors
        expected = model.apply(layer, 0, batch)
    made = in_int8(folder, tmp_path / "out", scheme)
    for shard in made.glob("model-00001-*.safetensors"):
        save_file({model.prefix(0) + name: tensor for name, tensor in stored.items()}, shard)
    again = StreamedModel(Checkpoint(made))
    assert again.format == Format(scheme, False)
    with again.layer(0) as layer:
        torch.testing.assert_close(again.apply(layer, 0, again.embed(TOKENS)), expected, rtol=1e-6, atol=1e-6)


QUERY = "self_attn.q_proj"


@pytest.mark.parametrize(
    ("scheme", "left_out", "changes"),
    [
        (W8A8, "bias", {}),
        (W8A16, "bias", {}),
        (W8A8, "weight_scale", {}),
        (NEURON, "scale", {}),
        (W8A8, None, {"weight": torch.ones(64, 63, dtype=torch.int8)}),
        (W8A8, None, {"weight_scale": torch.ones(63, 1)}),
        (BNB, None, {"SCB": torch.ones(63)}),
        (W8A8, None, {"weight_zero_point": torch.ones(64, 1)}),
        (W8A8, None, {"../extra.weight": torch.ones(64, 64), "../extra.weight_scale": torch.ones(64, 1)}),
    ],
    ids=lambda value: getattr(value, "name", None) or (str(list(value)) if isinstance(value, dict) else str(value)),
)
def test_a_quantized_module_that_does_not_fit_is_refused(
    scheme: Scheme, left_out: str | None, changes: dict[str, Tensor], tmp_path: Path
) -> None:
    made = in_int8(tiny_model(tmp_path / "tiny", "qwen2"), tmp_path / "out", scheme)
    (shard,) = made.glob("model-00001-*.safetensors")
    tensors = load_file(shard)
    prefix = f"model.layers.0.{QUERY}."
    tensors.pop(f"{prefix}{left_out}", None)
    tensors |= {(prefix + name).replace("q_proj.../", ""): tensor for name, tensor in changes.items()}
    save_file(tensors, shard)
    index = json.loads((made / INDEX_FILE).read_text())["weight_map"]
    kept = {name: file for name, file in index.items() if file != shard.name} | dict.fromkeys(tensors, shard.name)
    (made / INDEX_FILE).write_text(json.dumps({"weight_map": kept}))
    with pytest.raises(BadCheckpoint):
        logits_of(StreamedModel(Checkpoint(made)))


def test_a_layer_with_buffers_can_be_loaded_twice(tmp_path: Path) -> None:
    model = StreamedModel(Checkpoint(tiny_model(tmp_path / "tiny", "recurrent_gemma")))
    first = logits_of(model)
    assert torch.equal(logits_of(model), first)


def test_a_layers_stored_buffers_are_stored_again(tmp_path: Path) -> None:
    model = StreamedModel(Checkpoint(tiny_model(tmp_path / "tiny", "gemma4_text", vocab_size_per_layer_input=257)))
    with model.layer(0) as layer:
        result = quantize_layer(model, layer, 0, [model.embed(TOKENS)], Recipe(method="gptq"))
    assert "layer_scalar" in result.tensors


@pytest.mark.parametrize(
    ("limit", "wanted"), [("5000\n", 2000), ("max\n", None), ("1000\n", 0), (f"{1 << 60}\n", None), (None, None)]
)
def test_free_memory_is_the_container_s_where_that_is_less(
    limit: str | None, wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("3000\n")
    monkeypatch.setattr(streamed, "_CGROUP", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert streamed.available_memory_bytes("cpu") == (10**9 if wanted is None else wanted)
