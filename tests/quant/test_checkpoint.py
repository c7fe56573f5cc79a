"""Checkpoints that are incomplete, damaged, contradictory or not for us: each is named, none is half read."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from quant_runs import RTN, Plan, here
from safetensors.torch import load_file, save_file
from tiny_models import edit_json, tiny_model

from burrstone.quant.checkpoint import INDEX_FILE, Checkpoint, find_checkpoint, refuse_unsupported
from burrstone.quant.errors import BadCheckpoint, QuantizeError, UnsupportedModel
from burrstone.quant.recipe import Recipe
from burrstone.quant.streamed import StreamedModel

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("good") / "tiny", num_hidden_layers=2)


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(good, tmp_path / "tiny"))


@pytest.fixture
def sharded(model: Path) -> Path:
    """In two files with an index."""
    tensors = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    weight_map = {name: f"model-{1 + ('.layers.1.' in name)}.safetensors" for name in tensors}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, model / file)
    (model / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return model


def read_all(folder: Path) -> StreamedModel:
    """Everything that quantizing reads."""
    model = StreamedModel(Checkpoint(folder))
    for index in range(model.num_layers):
        with model.layer(index):
            pass
    return model


def edit_index(folder: Path, **changes: Any) -> None:
    weight_map = json.loads((folder / INDEX_FILE).read_text())["weight_map"] | changes
    edit_json(folder / INDEX_FILE, weight_map={name: file for name, file in weight_map.items() if file is not None})


def test_one_file_and_an_index_of_two_are_the_same_model(good: Path, sharded: Path) -> None:
    one, two = Checkpoint(good), Checkpoint(sharded)
    assert one.names == two.names == sorted(load_file(good / WEIGHTS))
    for name in one.names:
        assert torch.equal(one.tensor(name), two.tensor(name))
    assert "model.norm.weight" in two and "nothing" not in two
    assert two.num_bytes() == sum((sharded / f"model-{n}.safetensors").stat().st_size for n in (1, 2))
    assert set(two.tensors("model.layers.1.mlp.")) == {f"{part}_proj.weight" for part in ("gate", "up", "down")}
    with pytest.raises(BadCheckpoint, match="has no tensor nothing, which its architecture needs"):
        two.tensor("nothing")
    read_all(sharded)


@pytest.mark.parametrize("keep", [0, 7, 8, 500, -1, -5000])
def test_a_truncated_shard_is_named(keep: int, sharded: Path) -> None:
    shard = sharded / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(BadCheckpoint, match=rf"^{shard} cannot be read \(.+\); it is damaged, fetch it again$"):
        Checkpoint(sharded)


def test_bytes_too_many_are_damage(model: Path) -> None:
    with (model / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BadCheckpoint, match="fetch it again"):
        Checkpoint(model)


@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_bit_of_the_header_passes(seed: int, model: Path) -> None:
    whole = (model / WEIGHTS).read_bytes()
    header_bytes = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(seed)
    for _ in range(40):
        bit = draw.randrange(header_bytes * 8)
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (model / WEIGHTS).write_bytes(damaged)
        try:
            read_all(model)
        except BadCheckpoint:
            continue
        # Only what no reader of weights looks at may differ: the file's own remarks.
        assert b"__metadata__" in whole[8:][max(0, bit // 8 - 40) : bit // 8 + 40]


def test_an_index_may_lack_an_entry_that_its_files_hold(sharded: Path) -> None:
    edit_index(sharded, **{"model.norm.weight": None})
    read_all(sharded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": "model-9.safetensors"}, r"model-9\.safetensors cannot be read \(.*No such file"),
        ({"model.more.weight": "model-1.safetensors"}, r"index\.json names model\.more\.weight and 0 more tensors"),
        ({"model.norm.weight": ""}, r"cannot be read"),
    ],
)
def test_an_index_that_contradicts_its_files_is_named(changes: dict[str, str], message: str, sharded: Path) -> None:
    edit_index(sharded, **changes)
    with pytest.raises(BadCheckpoint, match=message):
        Checkpoint(sharded)


def test_an_index_without_a_shard_s_entries_misses_its_tensors(sharded: Path) -> None:
    entries = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    edit_index(sharded, **{name: None for name, file in entries.items() if file == "model-2.safetensors"})
    with pytest.raises(BadCheckpoint, match=r"layer 1 has no tensor .*, which its architecture needs"):
        read_all(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "\xff"])
def test_an_index_that_is_none_is_named(content: str, sharded: Path) -> None:
    (sharded / INDEX_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(
        BadCheckpoint, match=r"index\.json (cannot be read as JSON|holds no JSON object|has no weight_map)"
    ):
        Checkpoint(sharded)


@pytest.mark.parametrize("content", ["", "{", '{"a": 1,}', "\xff\xfe{}", "model"])
def test_a_config_that_is_not_json_is_named(content: str, model: Path) -> None:
    (model / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadCheckpoint, match=rf"^{model / 'config.json'} cannot be read as JSON: "):
        Checkpoint(model)


def test_a_folder_lacks_what_it_needs(model: Path, tmp_path: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"has no \*\.safetensors weights; convert the checkpoint"):
        Checkpoint(model)
    (model / "config.json").write_text("[1]")
    with pytest.raises(BadCheckpoint, match="holds no JSON object"):
        Checkpoint(model)
    (model / "config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"config\.json is missing; give a Hugging Face model folder"):
        Checkpoint(model)


def test_tensors_too_few_or_too_many_or_of_another_size_are_named(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    gate = "model.layers.1.mlp.gate_proj.weight"
    for changed, message in (
        ({name: tensor for name, tensor in tensors.items() if name != gate}, r"layer 1 has no tensor mlp\.gate_proj"),
        (tensors | {"model.layers.0.mlp.gate_proj.extra": torch.zeros(1)}, r"extra is no part of its architecture"),
        (tensors | {"vision.weight": torch.zeros(1)}, r"vision\.weight is no part of its architecture"),
        (tensors | {gate: torch.zeros(2, 3)}, r"layer 1: size mismatch for mlp\.gate_proj\.weight"),
    ):
        save_file(changed, model / WEIGHTS)
        with pytest.raises(BadCheckpoint, match=message):
            read_all(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_local_experts": 8, "model_type": "mixtral"}, r"mixture of experts \(mixtral\); only dense models"),
        ({"num_experts": 2}, "mixture of experts"),
        ({"n_routed_experts": 64}, "mixture of experts"),
        ({"moe_num_experts": 4}, "mixture of experts"),
        ({"text_config": {"num_experts": 128}}, "mixture of experts"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code of its own to run; such models are not quantized"),
    ],
)
def test_models_that_are_known_not_to_work_are_refused(config: dict[str, Any], message: str, model: Path) -> None:
    edit_json(model / "config.json", **config)
    with pytest.raises(UnsupportedModel, match=message):
        StreamedModel(Checkpoint(model))


@pytest.mark.parametrize("count", [None, 0, 1])
def test_no_experts_are_no_mixture(count: int | None) -> None:
    refuse_unsupported({"num_experts": count}, Path("x"))


def test_what_is_quantized_already_is_refused(model: Path, tmp_path: Path) -> None:
    for number, scheme in enumerate(("w8a8-int8", "w8a16-int8", "bnb-int8", "neuron-int8", "kv-int8")):
        made = tmp_path / f"made-{number}"
        here(Plan(model, made, Recipe(schemes=scheme, method="rtn"))).run()
        with pytest.raises(QuantizeError, match=rf"{made} is quantized already; quantize the original"):
            here(Plan(made, tmp_path / "again", RTN)).run()
    edit_json(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModel, match=r"is quantized as 'gptq' \(no format named\)"):
        here(Plan(model, tmp_path / "again", RTN)).run()
    assert not (tmp_path / "again.partial").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"),
        ("num_hidden_layers", None),
        ("num_attention_heads", 0),
        ("rms_norm_eps", "x"),
        ("dtype", "nope"),
        ("num_experts", "many"),
        ("quantization_config", "int8"),
        ("burrstone", "x"),
    ],
)
def test_a_config_of_wrong_types_is_refused_in_words(key: str, value: object, model: Path) -> None:
    edit_json(model / "config.json", **{key: value})
    with pytest.raises(QuantizeError):
        read_all(model)


def test_an_index_of_wrong_types_is_named(sharded: Path) -> None:
    edit_index(sharded, **{"model.norm.weight": ["model-1.safetensors"]})
    with pytest.raises(BadCheckpoint):
        Checkpoint(sharded)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "nope"), ("model_type", "nope"), ("model_type", "bert"), ("num_hidden_layers", 0)]
)
def test_an_architecture_that_is_not_known_is_refused(key: str, value: object, model: Path) -> None:
    edit_json(model / "config.json", **{key: value})
    with pytest.raises(UnsupportedModel, match=r"no causal language model of type|not a row of layers"):
        read_all(model)


def test_the_tokenizer_goes_along_and_weights_and_old_verdicts_do_not(model: Path) -> None:
    for name in ("LICENSE", "quality.json", "README.md", ".hidden", "model.gguf", "x.bin", "a.onnx"):
        (model / name).write_text("x")
    (model / "original").mkdir()
    (model / "original" / "x.txt").write_text("x")
    names = {file.name for file in Checkpoint(model).companions()}
    assert names == {
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_model_is_found_as_a_folder_or_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint(str(model)) == find_checkpoint("tiny") == find_checkpoint("~/tiny") == model.resolve()
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "file").write_text("x")
    for word in ("nothing", "/nothing/here", "./owner/none", "a/b/c", "owner/file", "~/none"):
        with pytest.raises(
            BadCheckpoint, match=rf"^model '{word}' is neither a folder that exists nor a hub id \(owner/name\)$"
        ):
            find_checkpoint(word)


def test_a_hub_id_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(BadCheckpoint, match=r"cannot be had from the hub \(cannot reach the hub\); check the name"):
        find_checkpoint("owner/name")
