"""An evaluation finds what transformers finds, says the same each time, and tells a broken checkpoint from a good one."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quant_runs import RTN, Plan, here, tokens_of, write_text
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, plant_outliers, tiny_model
from transformers import AutoModelForCausalLM

from burrstone.quant import evaluate as module
from burrstone.quant.cases import Case, load_cases
from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import BadCheckpoint, BadData
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.progress import SilentBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.streamed import StreamedModel
from burrstone.quant.verdict import Margins, Measured, judge

ROWS, LENGTH, PROMPT, NEW = 12, 48, 32, 32
TIMES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_model(folder / "tiny")


@pytest.fixture(scope="module")
def data(folder: Path) -> Data:
    return Data(tokens_of(write_text(folder / "held-out.txt", seed=5), ROWS, LENGTH))


@pytest.fixture(scope="module")
def evaluation(model: Path, data: Data) -> Evaluation:
    return Evaluation(Checkpoint(model), data, SilentBar())


@pytest.fixture(scope="module")
def honest(model: Path, folder: Path) -> Path:
    here(Plan(model, folder / "honest", RTN)).run()
    return folder / "honest"


@pytest.fixture(scope="module")
def shaken(model: Path, folder: Path) -> Path:
    """Unquantized, with weights a little off: transformers itself can run it."""
    torch.manual_seed(3)
    other = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.003 * torch.randn(parameter.shape))
    other.save_pretrained(folder / "shaken")
    return folder / "shaken"


def with_scales(source: Path, target: Path, factor: float, module_name: str) -> Path:
    """A copy in which one module's scales are off."""
    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        tensors = load_file(file)
        if (name := f"{module_name}.weight_scale") in tensors:
            save_file(tensors | {name: tensors[name] * factor}, file)
            return target
    raise AssertionError(module_name)


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """By transformers alone; [rows, length, vocabulary] float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = model(tokens).logits.double()
    return logits


def common(first: torch.Tensor, second: torch.Tensor) -> list[int]:
    """How many tokens two texts share from the beginning, row by row."""
    return [
        int((ours != theirs).nonzero()[0]) if (ours != theirs).any() else len(ours)
        for ours, theirs in zip(first, second, strict=True)
    ]


def test_the_figures_are_those_of_transformers(model: Path, shaken: Path, data: Data, evaluation: Evaluation) -> None:
    found = evaluation.compare(Checkpoint(shaken))
    rows = data.text.rows
    reference, candidate = (logits_of(folder, rows)[:, :-1].log_softmax(dim=-1) for folder in (model, shaken))
    nll = [-logp.gather(2, rows[:, 1:, None])[..., 0].mean(dim=1) for logp in (reference, candidate)]
    kl = (reference.exp() * (reference - candidate)).sum(dim=-1).mean(dim=1)
    assert found["perplexity_reference"] == pytest.approx(math.exp(float(nll[0].mean())), rel=1e-5)
    assert found["perplexity_ratio"] == pytest.approx(math.exp(float((nll[1] - nll[0]).mean())), rel=1e-5)
    assert found["mean_kl"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found["mean_kl_upper"] > found["mean_kl"] > 1e-4
    agreement = (reference.argmax(dim=-1) == candidate.argmax(dim=-1)).double().mean()
    assert found["top1_agreement"] == pytest.approx(float(agreement))


def test_greedy_agreement_is_that_of_a_second_generation(
    model: Path, shaken: Path, data: Data, evaluation: Evaluation
) -> None:
    prompts = data.text.rows[:16, :PROMPT]
    texts = []
    for folder in (model, shaken):
        writer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        writer.generation_config.eos_token_id = None
        texts.append(writer.generate(prompts, do_sample=False, max_new_tokens=NEW)[:, PROMPT:])
    lengths = common(*texts)
    # The models part early in some rows and late, or never, in others; else this test would show little.
    assert min(lengths) < NEW // 2 < max(lengths)
    assert evaluation.compare(Checkpoint(shaken))["greedy"] == {
        "rows": ROWS,
        "tokens": NEW,
        "mean_prefix": sum(lengths) / ROWS,
        "identical": lengths.count(NEW) / ROWS,
    }


def test_greedy_agreement_of_a_quantized_one_is_that_of_its_own_generation(
    model: Path, honest: Path, data: Data, evaluation: Evaluation
) -> None:
    texts = []
    for folder in (model, honest):
        with StreamedModel(Checkpoint(folder)).resident() as whole, torch.inference_mode():
            tokens = data.text.rows[:16, :PROMPT]
            for _ in range(NEW):
                tokens = torch.cat([tokens, whole(input_ids=tokens).logits[:, -1:].argmax(dim=-1)], dim=1)
        texts.append(tokens[:, PROMPT:])
    lengths = common(*texts)
    greedy = evaluation.compare(Checkpoint(honest))["greedy"]
    assert (greedy["mean_prefix"], greedy["identical"]) == (sum(lengths) / ROWS, lengths.count(NEW) / ROWS)


def test_where_the_reference_does_not_fit_generation_is_left_out_and_said(
    model: Path, honest: Path, data: Data, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda _: 1000)
    found = Evaluation(Checkpoint(model), data, SilentBar()).compare(Checkpoint(honest))
    need = int(1.2 * StreamedModel(Checkpoint(model)).float32_bytes())
    assert found["greedy"] == {
        "missing": f"generating takes the reference in float32 at once, about {need} bytes, and 1000 are free"
    }
    assert found["mean_kl"] == evaluation.compare(Checkpoint(honest))["mean_kl"]


def test_a_copy_is_the_same_to_the_bit(model: Path, tmp_path: Path, evaluation: Evaluation) -> None:
    found = evaluation.compare(Checkpoint(Path(shutil.copytree(model, tmp_path / "copy"))))
    exact = ("perplexity_ratio", "perplexity_ratio_upper", "mean_kl", "mean_kl_upper", "top1_agreement")
    assert [found[key] for key in exact] == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert found["greedy"]["identical"] == 1.0
    assert (found["verdict"], found["reasons"]) == ("pass", [])


def test_an_honest_checkpoint_passes_and_a_sabotaged_one_fails_each_time_alike(
    model: Path, honest: Path, data: Data, tmp_path: Path
) -> None:
    bad = with_scales(honest, tmp_path / "bad", 4.0, "model.layers.1.mlp.down_proj")
    found: dict[str, list[str]] = {"pass": [], "fail": []}
    for _ in range(TIMES):
        evaluation = Evaluation(Checkpoint(model), data, SilentBar())
        for candidate, verdict in ((honest, "pass"), (bad, "fail")):
            quality = evaluation.compare(Checkpoint(candidate))
            assert quality["verdict"] == verdict
            found[verdict].append(json.dumps(quality | {"date": "any"}, sort_keys=True))
    assert [len(set(texts)) for texts in found.values()] == [1, 1]
    assert "mean KL may be" in found["fail"][0]


@pytest.mark.parametrize("layer", range(3))
def test_no_module_s_sabotage_passes(layer: int, honest: Path, tmp_path: Path, evaluation: Evaluation) -> None:
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
        bad = with_scales(honest, tmp_path / part, 4.0, f"model.layers.{layer}.{part}_proj")
        assert evaluation.compare(Checkpoint(bad))["verdict"] == "fail", part


def test_smoothing_wins_back_what_planted_outliers_cost(folder: Path, data: Data) -> None:
    model = tiny_model(folder / "outliers")
    plain = logits_of(model, data.text.rows)
    plant_outliers(model)
    assert torch.equal(logits_of(model, data.text.rows), plain)
    text = write_text(folder / "calibration.txt", seed=6)
    evaluation = Evaluation(Checkpoint(model), data, SilentBar())
    found = {}
    for method in ("rtn", "smoothquant", "smoothquant+gptq"):
        recipe = Recipe(method=method)
        here(Plan(model, folder / method, recipe, text if recipe.needs_data else None)).run()
        found[method] = evaluation.compare(Checkpoint(folder / method))
    assert [quality["verdict"] for quality in found.values()] == ["fail", "pass", "pass"]
    for method in ("smoothquant", "smoothquant+gptq"):
        assert found[method]["mean_kl"] < 0.1 * found["rtn"]["mean_kl"]


@pytest.fixture(scope="module")
def cases(model: Path, data: Data, folder: Path) -> list[Case]:
    """Of letters, what the reference finds likeliest and unlikeliest. It is right in the first half, wrong in the other."""
    tokenizer, rows = byte_tokenizer(), []
    letters = tokenizer("".join(map(chr, range(33, 127))))["input_ids"]
    ranked = logits_of(model, data.text.rows[:, :8])[:, -1, letters].argsort(dim=1)
    for number, row in enumerate(data.text.rows):
        choices = [tokenizer.decode([letters[int(ranked[number, place])]]) for place in (0, -1)]
        rows.append({"prompt": tokenizer.decode(row[:8]), "choices": choices, "answer": int(number < ROWS // 2)})
    file = folder / "cases.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return load_cases(file, tokenizer)


def test_cases_are_counted_for_both_models(
    model: Path, cases: list[Case], data: Data, tmp_path: Path, folder: Path
) -> None:
    other = tiny_model(tmp_path / "other", seed=8)
    judged = Data(data.text, cases, "cases.jsonl")
    found = Evaluation(Checkpoint(model), judged, SilentBar(), margins=Margins(task=1.0)).compare(Checkpoint(other))
    right = [case.correct([logits_of(other, option[None])[0].float() for option in case.options]) for case in cases]
    assert 0 < sum(right) < ROWS
    assert found["cases"] == "cases.jsonl"
    task = found["task"]
    assert (task["cases"], task["accuracy_reference"], task["accuracy_candidate"]) == (ROWS, 0.5, sum(right) / ROWS)
    assert task["difference_lower"] < task["difference"] == pytest.approx(sum(right) / ROWS - 0.5)
    assert not [reason for reason in found["reasons"] if "task" in reason]
    strict = Evaluation(Checkpoint(model), judged, SilentBar(), margins=Margins(task=0.0)).compare(Checkpoint(other))
    assert "task accuracy may be lower by" in strict["reasons"][-1]


def test_too_few_rows_and_another_vocabulary_are_refused(
    model: Path, evaluation: Evaluation, folder: Path, tmp_path: Path
) -> None:
    few = Data(tokens_of(folder / "held-out.txt", rows=7, length=LENGTH))
    with pytest.raises(BadData, match=r"7 rows are too few for an interval; give text for at least 8 rows"):
        Evaluation(Checkpoint(model), few, SilentBar())
    other = tiny_model(tmp_path / "other", vocab_size=300)
    with pytest.raises(BadCheckpoint, match="a vocabulary of 300, the reference one of 257: it is not the same model"):
        evaluation.compare(Checkpoint(other))


@pytest.mark.parametrize("worse", [math.nan, 700.0])
def test_figures_that_are_no_numbers_fail(worse: float) -> None:
    zeros = np.zeros(ROWS)
    measured = Measured(zeros + 5, zeros + 5 + worse, zeros + worse, zeros, task=np.zeros((0, 2)))
    assert judge(measured, Margins())["verdict"] == "fail"


def test_a_model_that_is_wrecked_fails_instead_of_the_evaluation(
    model: Path, tmp_path: Path, evaluation: Evaluation
) -> None:
    here(Plan(model, tmp_path / "head", Recipe(method="rtn", quantize_lm_head=True))).run()
    bad = with_scales(tmp_path / "head", tmp_path / "bad", 1e4, "lm_head")
    assert evaluation.compare(Checkpoint(bad))["verdict"] == "fail"


def test_a_verdict_is_json_for_everybody(model: Path, tmp_path: Path, evaluation: Evaluation) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    tensors: dict[str, Any] = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors")
    found = evaluation.compare(Checkpoint(broken))
    assert found["verdict"] == "fail"
    json.dumps(found, allow_nan=False)
