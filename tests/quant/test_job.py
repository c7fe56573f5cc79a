"""A run that is killed, refused or started twice: what is left of it, and that the end is the same to the byte."""

import dataclasses
import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from quant_runs import RTN, Plan, contents, here, layers_done, make, partial, start, wait_layers, write_text
from safetensors.torch import load_file, save_file
from tiny_models import edit_json, tiny_model

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import BadCheckpoint, BadData, Interfered, QuantizeError
from burrstone.quant.quality import weights_digest
from burrstone.quant.recipe import Recipe

LAYERS = 5
FULL = Recipe()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "calibration.txt", seed=1)


@pytest.fixture(scope="module")
def whole(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What runs that nobody interrupts make, by method."""
    made = {}
    for recipe in (FULL, RTN):
        out = tmp_path_factory.mktemp("whole") / "out"
        assert make(plan_of(model, out, text, recipe)) == ""
        made[recipe.method] = contents(out)
    return made


def plan_of(model: Path, out: Path, text: Path, recipe: Recipe) -> Plan:
    return Plan(model, out, recipe, text if recipe.needs_data else None)


def steps_of(recipe: Recipe, layers: int) -> int:
    """A layer is two steps, watched and applied; without data it is one."""
    return layers * (2 if recipe.needs_data else 1)


@pytest.mark.parametrize("recipe", [FULL, RTN], ids=lambda recipe: recipe.method)
@pytest.mark.parametrize("seed", range(3))
def test_killed_twice_at_random_layers_and_resumed_makes_the_same_bytes(
    seed: int, recipe: Recipe, model: Path, text: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path / "out", text, recipe)
    for layers in sorted(random.Random(seed).sample(range(1, LAYERS), 2)):
        # Held at the end of the next layer at the latest, so that it cannot be done before it is killed.
        steps = steps_of(recipe, layers + 1 - layers_done(plan.out))
        making = start(dataclasses.replace(plan, hold_at_step=steps))
        wait_layers(making, layers)
        making.kill()
        assert layers_done(plan.out) >= layers
        assert not plan.out.exists()
    assert make(plan) == ""
    assert contents(plan.out) == whole[recipe.method]
    assert not partial(plan.out).exists()


def test_killed_in_the_middle_of_a_file_and_resumed_makes_the_same_bytes(
    model: Path, text: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path / "out", text, RTN)
    assert make(dataclasses.replace(plan, max_file_bytes=20_000, deadly=True)) == "killed"
    assert (layers_done(plan.out), plan.out.exists()) == (0, False)
    assert make(plan) == ""
    assert contents(plan.out) == whole[RTN.method]


@pytest.mark.parametrize("step", [1, 2, 5, 2 * LAYERS])
def test_killed_in_the_middle_of_a_layer_loses_that_layer_alone(
    step: int, model: Path, text: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path / "out", text, FULL)
    making = start(dataclasses.replace(plan, hold_at_step=step))
    making.wait_held()
    making.kill()
    assert layers_done(plan.out) == (step - 1) // 2
    assert make(plan) == ""
    assert contents(plan.out) == whole[FULL.method]


def _dies(recipe: Recipe, operation: str, name: str, time: int = 1) -> object:
    return pytest.param(recipe, (operation, name, time), id=f"{recipe.method} {operation} {name} {time}")


@pytest.mark.parametrize(
    ("recipe", "die"),
    [
        _dies(FULL, "replace", ".state.json", 1),
        _dies(FULL, "replace", "model-00001-of-00006.safetensors"),
        _dies(FULL, "replace", "hidden-00001.activations"),
        _dies(FULL, "replace", ".state.json", 2),
        _dies(FULL, "unlink", "hidden-00000.activations"),
        _dies(FULL, "unlink", "hidden-00001.activations"),
        _dies(FULL, "replace", ".state.json", LAYERS + 1),
        _dies(FULL, "replace", "model-00006-of-00006.safetensors"),
        _dies(FULL, "replace", "README.md"),
        _dies(RTN, "replace", "model-00006-of-00006.safetensors"),
        _dies(RTN, "replace", "tokenizer.json"),
        _dies(RTN, "replace", "config.json"),
        _dies(RTN, "replace", "README.md"),
        _dies(RTN, "rename", "out"),
    ],
)
def test_killed_between_two_files_and_resumed_makes_the_same_bytes(
    recipe: Recipe,
    die: tuple[str, str, int],
    model: Path,
    text: Path,
    whole: dict[str, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    plan = plan_of(model, tmp_path / "out", text, recipe)
    assert make(dataclasses.replace(plan, die=die)) == "killed"
    assert not plan.out.exists()
    assert make(plan) == ""
    assert contents(plan.out) == whole[recipe.method]


def test_of_runs_on_one_output_all_but_one_are_refused_and_none_is_harmed(
    model: Path, text: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path / "out", text, FULL)
    first = start(dataclasses.replace(plan, hold_at_step=3))
    first.wait_held()
    before = contents(partial(plan.out))
    others = [start(dataclasses.replace(plan, restart=restart)) for restart in (False, True)]
    for other in others:
        assert other.result() == f"Interfered: another process is making {plan.out}"
    assert contents(partial(plan.out)) == before
    first.go_on()
    assert first.result() == ""
    assert contents(plan.out) == whole[FULL.method]
    assert make(plan) == f"Interfered: {plan.out} exists; remove it or choose another -o"
    assert contents(plan.out) == whole[FULL.method]


def test_runs_that_start_at_once_have_one_winner(
    model: Path, whole: dict[str, dict[str, bytes]], text: Path, tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path / "out", text, RTN)
    racing = [start(dataclasses.replace(plan, hold_at_step=1)) for _ in range(4)]
    messages = {making.process.pid: making.pipe.recv() for making in racing}
    winners = [making for making in racing if messages[making.process.pid] == "here"]
    assert len(winners) == 1
    assert sorted(messages.values()) == [*[f"Interfered: another process is making {plan.out}"] * 3, "here"]
    winners[0].go_on()
    assert winners[0].result() == ""
    assert contents(plan.out) == whole[RTN.method]


def test_a_killed_run_is_not_continued_as_another(
    model: Path, text: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path / "out", text, FULL)
    making = start(dataclasses.replace(plan, hold_at_step=3))
    making.wait_held()
    making.kill()
    left = contents(partial(plan.out))
    other_text = write_text(tmp_path / "other.txt", seed=2)
    other_model = tiny_model(tmp_path / "other", num_hidden_layers=LAYERS, seed=1)
    for other, differs in (
        (dataclasses.replace(plan, recipe=RTN, text=None), "calibration, recipe"),
        (dataclasses.replace(plan, recipe=Recipe(dampening=0.02)), "recipe"),
        (dataclasses.replace(plan, text=other_text), "calibration"),
        (dataclasses.replace(plan, source=other_model), "source_digest"),
    ):
        message = make(other)
        assert message == (
            f"Interfered: {partial(plan.out)} belongs to a run with another {differs}; give --restart to start anew"
        )
        assert contents(partial(plan.out)) == left
    restarted = dataclasses.replace(plan, recipe=RTN, text=None, restart=True)
    assert make(restarted) == ""
    assert contents(plan.out) == whole[RTN.method]


def test_restart_drops_damage_that_resuming_names(
    model: Path, text: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    plan = plan_of(model, tmp_path / "out", text, FULL)
    making = start(dataclasses.replace(plan, hold_at_step=3))
    making.wait_held()
    making.kill()
    hidden = partial(plan.out) / "hidden-00001.activations"
    hidden.write_bytes(hidden.read_bytes()[:-100])
    message = make(plan)
    assert message.startswith(f"BadCheckpoint: {hidden} cannot be read")
    assert message.endswith("give --restart to start anew")
    assert make(dataclasses.replace(plan, restart=True)) == ""
    assert contents(plan.out) == whole[FULL.method]


def test_the_result_tells_what_was_made(model: Path, text: Path, tmp_path: Path) -> None:
    plan = plan_of(model, tmp_path / "out", text, FULL)
    making = start(dataclasses.replace(plan, hold_at_step=5))
    making.wait_held()
    making.kill()
    result = here(plan).run()
    assert (result.num_layers, result.resumed_layers) == (LAYERS, 2)
    assert result.weights_digest == weights_digest(plan.out)
    assert result.bytes_before == (model / "model.safetensors").stat().st_size
    assert (
        result.bytes_after == sum(file.stat().st_size for file in plan.out.glob("*.safetensors")) < result.bytes_before
    )
    losses = [row["loss"] for row in result.worst]
    assert losses == sorted(losses, reverse=True)
    assert result.kept == []


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(method="rtn", keep=("*.layers.1.*", "*.o_proj")),
        Recipe(method="smoothquant", keep=("*.layers.1.*",)),
    ],
    ids=lambda recipe: recipe.method,
)
def test_kept_modules_are_the_source_s_to_the_bit(recipe: Recipe, model: Path, text: Path, tmp_path: Path) -> None:
    result = here(plan_of(model, tmp_path / "out", text, recipe)).run()
    source, made = Checkpoint(model), Checkpoint(tmp_path / "out")
    assert {name for name in result.kept if ".layers.1." in name} == {
        name.removesuffix(".weight") for name in source.names if ".layers.1." in name and "norm" not in name
    }
    assert made.config["quantization_config"]["ignore"] == ["lm_head", *result.kept]
    for name in result.kept:
        assert torch.equal(source.tensor(f"{name}.weight"), made.tensor(f"{name}.weight")), name


def test_without_data_a_method_that_needs_it_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"method gptq needs calibration data; give --calibration"):
        here(Plan(model, tmp_path / "out", Recipe(method="gptq"))).run()
    assert not partial(tmp_path / "out").exists()


def test_a_refused_run_lets_the_next_one_of_the_process_go(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("mine")
    with pytest.raises(Interfered, match=r"holds no \.state\.json"):
        here(Plan(model, tmp_path / "out")).run()
    here(Plan(model, tmp_path / "out", restart=True)).run()


def test_a_tokenizer_of_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny", vocab_size=90, eos_token_id=None)
    with pytest.raises(BadData):
        here(plan_of(model, tmp_path / "out", text, FULL)).run()


def test_weights_that_no_layer_takes_are_refused(model: Path, tmp_path: Path) -> None:
    short = tiny_model(tmp_path / "tiny", num_hidden_layers=3)
    edit_json(short / "config.json", num_hidden_layers=2)
    with pytest.raises(QuantizeError):
        here(Plan(short, tmp_path / "out")).run()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["rtn", "smoothquant+gptq"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_weights_that_are_no_numbers_are_refused(
    value: float, method: str, name: str, text: Path, tmp_path: Path
) -> None:
    source = tiny_model(tmp_path / "source", tie_word_embeddings=False)
    tensors = load_file(source / "model.safetensors")
    tensors[name][3, 5] = value
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    recipe = Recipe(method=method, quantize_lm_head=True)
    plan = Plan(source, tmp_path / "out", recipe, None if method == "rtn" else text)
    module = name.removesuffix(".weight") if "layers" in name else name
    with pytest.raises(BadCheckpoint, match=rf"{re.escape(module)}.* no numbers \(inf or nan\)"):
        here(plan).run()
    assert not (tmp_path / "out").exists()


def test_a_source_s_own_state_json_is_no_state_of_ours(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    (model / "state.json").write_text('{"theirs": true}')
    here(Plan(model, tmp_path / "out")).run()
    assert json.loads((tmp_path / "out" / "state.json").read_text()) == {"theirs": True}
