"""Mixed precision: the worst units stay in 16 bits until the verdict passes, whatever interrupts the search."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quant_runs import RTN, Plan, contents, here, make, partial, tokens_of, write_text
from tiny_models import byte_tokenizer, tiny_model

from burrstone.quant.cases import Case
from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import BadData, QuantizeError
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.formats import SCHEMES
from burrstone.quant.job import Job
from burrstone.quant.mixed import next_units
from burrstone.quant.progress import SilentBar
from burrstone.quant.quality import standing
from burrstone.quant.recipe import Recipe
from burrstone.quant.streamed import StreamedModel
from burrstone.quant.verdict import Margins

LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """So strict that several units have to be kept, and not all."""
    model = tiny_model(folder / "tiny")
    text = write_text(folder / "held-out.txt", seed=5)
    margins = Margins(perplexity=1.0, mean_kl=0.0008)
    return Plan(model, folder / "out", RTN, until=margins, held_out=text)


@pytest.fixture(scope="module")
def tries(plan: Plan) -> list[str]:
    """What an uninterrupted run says, which makes plan.out."""
    said: list[str] = []

    class Listening(SilentBar):
        def say(self, text: str) -> None:
            said.append(text)

    job = here(plan)
    job.bar = Listening()
    job.run()
    return [text for text in said if "units kept" in text]


def units_of(out: Path) -> list[dict[str, Any]]:
    """Every unit's report, with its layer."""
    layers = json.loads((out / "quantization.json").read_text())["layers"]
    return [unit | {"layer": index} for index, layer in enumerate(layers) for unit in layer["units"]]


def names_of(units: list[dict[str, Any]]) -> set[str]:
    return {f"model.layers.{unit['layer']}.{name}" for unit in units for name in unit["modules"]}


def test_twice_as_many_are_kept_at_each_try_until_it_passes(tries: list[str], plan: Plan) -> None:
    assert [text.split()[0] for text in tries] == ["0", "1", "2", "4", "8"]
    assert [text.split()[-1] for text in tries] == ["fail"] * 4 + ["pass"]
    kept = [unit for unit in units_of(plan.out) if unit["kept"]]
    assert len(kept) == 8


@pytest.mark.usefixtures("tries")
def test_those_that_lost_most_are_kept_unrounded_and_named(plan: Plan) -> None:
    units = units_of(plan.out)
    kept, rounded = ([unit for unit in units if unit["kept"] == which] for which in (True, False))
    assert len(units) == 4 * LAYERS
    assert min(unit["loss"] for unit in kept) >= max(unit["loss"] for unit in rounded)
    source, made = Checkpoint(plan.source), Checkpoint(plan.out)
    for name in names_of(kept):
        assert torch.equal(made.tensor(f"{name}.weight"), source.tensor(f"{name}.weight"))
        assert f"{name}.weight_scale" not in made
    for name in names_of(rounded):
        assert made.tensor(f"{name}.weight").dtype == torch.int8
    ignore = made.config["quantization_config"]["ignore"]
    assert set(ignore) == {"lm_head", *names_of(kept)} and len(ignore) == len(set(ignore))
    index = json.loads((plan.out / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == made.names
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * tensor.element_size() for tensor in map(made.tensor, made.names)
    )


@pytest.mark.usefixtures("tries")
def test_the_verdict_comes_with_it_and_holds_for_these_files(plan: Plan) -> None:
    assert standing(plan.out).state == "passed"
    quality = json.loads((plan.out / "quality.json").read_text())
    assert quality["mean_kl_upper"] <= 0.0008
    card = (plan.out / "README.md").read_text()
    assert "**PASS**" in card and "Not evaluated yet" not in card
    assert all(f"`{name}`" in card for name in Checkpoint(plan.out).config["quantization_config"]["ignore"][1:])
    assert not [name for name in contents(plan.out) if name.startswith((".", "unrounded", "hidden", "state"))]
    # The search's last evaluation is what anyone finds who evaluates the result.
    assert plan.held_out is not None
    text = Data(tokens_of(plan.held_out))
    again = Evaluation(Checkpoint(plan.source), text, SilentBar()).compare(Checkpoint(plan.out))
    assert again["mean_kl"] == quality["mean_kl"]


def test_a_checkpoint_that_passes_at_once_keeps_nothing(plan: Plan, tmp_path: Path) -> None:
    lenient = dataclasses.replace(plan, out=tmp_path / "out", until=Margins(1.0, 1.0))
    assert here(lenient).run().kept == []
    plain = dataclasses.replace(plan, out=tmp_path / "plain", until=None)
    here(plain).run()
    made, rounded = contents(lenient.out), contents(plain.out)
    for name in rounded:
        if name not in ("README.md", "quantization.json"):
            assert made[name] == rounded[name], name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_margin_of_nothing_takes_everything_back(scheme: str, plan: Plan, tmp_path: Path) -> None:
    recipe = Recipe(schemes=scheme, method="rtn", keep=("*.layers.0.*",))
    strict = dataclasses.replace(plan, out=tmp_path / "out", recipe=recipe, until=Margins(0.0, 0.0))
    here(strict).run()
    source, made = Checkpoint(plan.source), Checkpoint(strict.out)
    assert made.names == source.names
    assert all(torch.equal(made.tensor(name), source.tensor(name)) for name in source.names)
    assert standing(strict.out).state == "passed"


def test_what_cannot_pass_is_made_all_the_same_and_says_so(plan: Plan, tmp_path: Path) -> None:
    """A rounded head is beyond what taking units back can mend."""
    recipe = Recipe(method="rtn", quantize_lm_head=True)
    strict = dataclasses.replace(plan, out=tmp_path / "out", recipe=recipe, until=Margins(0.0, 0.0))
    assert len(here(strict).run().kept) == 7 * LAYERS
    assert standing(strict.out).state == "failed"
    assert "**FAIL**" in (strict.out / "README.md").read_text()


def test_biases_stay_when_their_weights_are_taken_back(plan: Plan, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny", "qwen2")
    strict = dataclasses.replace(plan, source=model, out=tmp_path / "out", until=Margins(0.0, 0.0))
    here(strict).run()
    source, made = Checkpoint(model), Checkpoint(strict.out)
    assert "model.layers.0.self_attn.q_proj.bias" in made
    assert made.names == source.names
    assert all(torch.equal(made.tensor(name), source.tensor(name)) for name in source.names)


def test_smoothed_units_are_taken_back_as_smoothed(plan: Plan, tmp_path: Path) -> None:
    text = write_text(tmp_path / "calibration.txt", seed=9)
    recipe = Recipe(method="smoothquant+gptq")
    margins = Margins(perplexity=1.0, mean_kl=0.0015)
    mixed = dataclasses.replace(plan, out=tmp_path / "out", recipe=recipe, text=text, until=margins)
    result = here(mixed).run()
    assert 0 < len(result.kept) < 7 * LAYERS
    assert standing(mixed.out).state == "passed"
    model = StreamedModel(Checkpoint(mixed.out))
    for index in range(LAYERS):
        with model.layer(index):
            pass


def _dies(operation: str, name: str, time: int = 1) -> Any:
    return pytest.param((operation, name, time), id=f"{operation} {name} {time}")


# Of state.json there is one at the start, one a layer, and one for each time that units are chosen: the 5th to the 8th.
@pytest.mark.usefixtures("tries")
@pytest.mark.parametrize(
    "die",
    [
        _dies("replace", ".state.json", 3),
        _dies("replace", "unrounded-00001.weights"),
        _dies("replace", "model-00001-of-00004.safetensors", 2),
        _dies("replace", "config.json", 2),
        _dies("replace", ".state.json", 5),
        _dies("replace", ".state.json", 6),
        _dies("replace", "model-00002-of-00004.safetensors", 3),
        _dies("replace", "README.md", 5),
        _dies("unlink", "unrounded-00000.weights"),
        _dies("unlink", "unrounded-00001.weights"),
        _dies("rename", "out"),
        _dies("replace", "quality.json"),
    ],
)
def test_killed_and_resumed_it_makes_the_same_bytes(die: tuple[str, str, int], plan: Plan, tmp_path: Path) -> None:
    again = dataclasses.replace(plan, out=tmp_path / "out")
    assert make(dataclasses.replace(again, die=die)) == "killed"
    assert make(again) == ""
    assert contents(again.out) == contents(plan.out)


def test_it_resumes_for_the_same_text_and_margins_alone(plan: Plan, tmp_path: Path) -> None:
    again = dataclasses.replace(plan, out=tmp_path / "out")
    assert make(dataclasses.replace(again, die=("replace", ".state.json", 6))) == "killed"
    other_text = write_text(tmp_path / "other.txt", seed=6)
    for other in (
        dataclasses.replace(again, held_out=other_text),
        dataclasses.replace(again, until=Margins(perplexity=1.0, mean_kl=0.0009)),
        dataclasses.replace(again, until=None),
    ):
        assert make(other) == (
            f"Interfered: {partial(again.out)} belongs to a run with another until; give --restart to start anew"
        )


def test_other_cases_in_the_same_file_are_another_run(plan: Plan) -> None:
    assert plan.held_out is not None
    text = tokens_of(plan.held_out)
    tokens = torch.tensor(byte_tokenizer()("ab")["input_ids"])
    facts = [
        Evaluation(Checkpoint(plan.source), Data(text, [Case((option,), (1,), 0)], "cases.jsonl"), SilentBar()).facts()
        for option in (tokens, tokens.flip(0))
    ]
    assert facts[0] != facts[1]


def test_the_worst_come_first_and_kept_ones_no_more() -> None:
    losses = [[0.5, 0.1], [0.3, 0.5], [0.0, 0.2]]
    layers = [{"units": [{"loss": loss, "kept": loss == 0.3} for loss in layer]} for layer in losses]
    chosen = next_units(layers, 3)
    assert [losses[index][position] for index, position in chosen] == [0.5, 0.5, 0.2]
    assert chosen == next_units(layers, 3)
    assert len(next_units(layers, 99)) == 5
    assert next_units([], 1) == []


def test_too_little_text_is_refused_before_anything_is_made(plan: Plan, tmp_path: Path) -> None:
    assert plan.held_out is not None
    few = Data(tokens_of(plan.held_out, rows=7))
    with pytest.raises(BadData, match="7 rows are too few"):
        Job(
            Checkpoint(plan.source),
            tmp_path / "out",
            RTN,
            None,
            SilentBar(),
            until=Evaluation(Checkpoint(plan.source), few, SilentBar()),
        )
    assert list(tmp_path.iterdir()) == []


def test_without_rounded_weights_there_is_nothing_to_take_back(plan: Plan, tmp_path: Path) -> None:
    idle = dataclasses.replace(plan, out=tmp_path / "out", recipe=Recipe(schemes="kv-int8"), text=None)
    with pytest.raises(QuantizeError, match="kv-int8 rounds no weights that mixed precision could take back"):
        here(idle).run()
    assert not (tmp_path / "out.partial").exists()
