"""The model card: the command that makes the same bytes, the smoke notice, and one verdict, the last."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from quant_runs import RTN, Plan, contents, here, tokens_of, write_text
from tiny_models import byte_tokenizer, tiny_model

from burrstone.quant.card import VERDICT_END, VERDICT_START, command_line, record_quality, with_verdict
from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.job import Job
from burrstone.quant.progress import SilentBar
from burrstone.quant.quality import standing
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import SMOKE, SMOKE_NOTICE, load_tokens
from burrstone.quant.verdict import Margins
from burrstone.serving.cli.main import main

QUALITY: dict[str, Any] = {
    "verdict": "pass",
    "reasons": [],
    "perplexity_ratio": 1.0012,
    "perplexity_ratio_upper": 1.0034,
    "mean_kl": 0.0045,
    "mean_kl_upper": 0.0056,
    "top1_agreement": 0.987,
    "confidence": 0.95,
    "looks": 1,
    "margins": {"perplexity": 0.02, "mean_kl": 0.02, "task": 0.02},
    "greedy": {"rows": 8, "tokens": 32, "mean_prefix": 12.5, "identical": 0.25},
    "text": {"name": "held.txt", "shape": [8, 48], "notice": None},
    "reference": {"name": "tiny"},
    "date": "2026-11-28",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=2)


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    here(Plan(model, out, RTN)).run()
    return out


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def command_of(card: str) -> list[str]:
    return shlex.split(card.split("```\n")[1])


@pytest.mark.parametrize(
    "recipe",
    [
        RTN,
        Recipe(),
        Recipe(schemes="w8a16-int8+kv-int8", method="gptq", dampening=0.05, observer="mse"),
        Recipe(
            method="smoothquant", strength=0.5, granularity="per-tensor", keep=("*.layers.0.*", "*[s']elf_attn.o_proj")
        ),
        Recipe(method="rtn", quantize_lm_head=True, observer="percentile"),
        Recipe(schemes="kv-int8"),
    ],
    ids=lambda recipe: f"{recipe.schemes} {recipe.method}",
)
def test_the_command_of_the_card_makes_the_same_bytes(
    recipe: Recipe, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "tiny")
    write_text(Path("text.txt"), seed=1)
    here(Plan(Path("tiny"), Path("first"), recipe, Path("text.txt") if recipe.needs_data else None)).run()
    words = command_of(Path("first/README.md").read_text())
    assert words[:3] == ["burrstone", "quantize", "tiny"]
    assert main(words[1:]) == 0
    assert contents(Path(words[words.index("-o") + 1])) == contents(Path("first"))


def test_the_command_of_a_mixed_checkpoint_makes_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "tiny")
    held_out = write_text(Path("held.txt"), seed=1)
    margins = Margins(perplexity=1.0, mean_kl=0.001)
    here(Plan(Path("tiny"), Path("first"), RTN, until=margins, held_out=held_out)).run()
    words = command_of(Path("first/README.md").read_text())
    assert main(words[1:]) == 0
    assert contents(Path(words[words.index("-o") + 1])) == contents(Path("first"))


def test_words_that_a_shell_would_take_apart_are_quoted(tmp_path: Path) -> None:
    tokens = tokens_of(write_text(tmp_path / "my text; rm.txt", seed=1), split="calibration")
    told = command_line("a model", "out $HOME", Recipe(keep=("*.o_proj",)), tokens)
    words = shlex.split(told)
    assert {"a model", "out $HOME", "*.o_proj", str(tmp_path / "my text; rm.txt")} < set(words)
    assert "'*.o_proj'" in told
    assert words[-4:] == ["--rows", "8", "--row-tokens", "48"]


def test_the_smoke_notice_is_in_the_card_and_own_data_in_its_place(model: Path, tmp_path: Path) -> None:
    smoke = load_tokens(SMOKE, byte_tokenizer(), rows=8, length=48, split="calibration")
    own = tokens_of(write_text(tmp_path / "own.txt", seed=1), split="calibration")
    for tokens, noticed in ((smoke, True), (own, False)):
        out = tmp_path / f"out-{noticed}"
        Job(Checkpoint(model), out, Recipe(method="smoothquant"), tokens, SilentBar()).run()
        card = (out / "README.md").read_text()
        assert (f"\n> **{SMOKE_NOTICE}**\n" in card) == noticed
        assert f"- Calibration: {tokens.name}, 8 rows of 48 tokens, `{tokens.digest}`" in card


def test_the_card_tells_source_data_losses_and_where_it_runs(checkpoint: Path) -> None:
    card = (checkpoint / "README.md").read_text()
    for part in (
        "---\nlibrary_name: vllm\n",
        "# tiny, w8a8-int8",
        "Not evaluated yet.",
        "`w8a8-int8`: vLLM 0.32 on CUDA",
        "- Calibration: none: this method needs no data",
        "| `model.layers.1.mlp.down_proj` | ",
        "Left as they were: none of the layers.",
    ):
        assert part in card


def test_a_verdict_takes_the_place_of_the_one_before(checkpoint: Path) -> None:
    card = checkpoint / "README.md"
    before, _, rest = card.read_text().partition(VERDICT_START)
    after = rest.partition(VERDICT_END)[2]
    for quality, told in (
        (QUALITY | {"verdict": "fail", "reasons": ["mean KL may be 3 nats a token"]}, "**FAIL** on 2026-11-28"),
        (QUALITY, "**PASS** on 2026-11-28, against tiny, on 8 rows of 48 tokens of held.txt."),
    ):
        record_quality(checkpoint, quality)
        text = card.read_text()
        assert text.startswith(before) and text.endswith(after)
        assert text.count(VERDICT_START) == text.count(VERDICT_END) == text.count("| figure | found |") == 1
        assert told in text and "Not evaluated yet" not in text
    assert "FAIL" not in text and "3 nats" not in text
    assert "| perplexity | x1.0012 | x1.0034 | x1.02 |" in text
    assert standing(checkpoint).state == "passed"
    assert not [file for file in checkpoint.iterdir() if file.name.startswith(".")]


def test_the_notice_of_a_smoke_evaluation_comes_and_goes_with_its_verdict(checkpoint: Path) -> None:
    record_quality(checkpoint, QUALITY | {"text": {"name": SMOKE, "shape": [8, 48], "notice": SMOKE_NOTICE}})
    assert f"> **{SMOKE_NOTICE}**" in (checkpoint / "README.md").read_text()
    record_quality(checkpoint, QUALITY)
    assert SMOKE_NOTICE not in (checkpoint / "README.md").read_text()


def test_a_card_without_a_place_gets_one_and_keeps_its_text(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("# Mine\n\nWords.")
    for _ in range(2):
        record_quality(checkpoint, QUALITY)
    text = (checkpoint / "README.md").read_text()
    assert text.startswith(f"# Mine\n\nWords.\n\n## Verdict\n\n{VERDICT_START}\n**PASS**")
    assert text.count("**PASS**") == 1
    (checkpoint / "README.md").unlink()
    record_quality(checkpoint, QUALITY)
    assert (checkpoint / "README.md").read_text().startswith("# out\n\n## Verdict\n")


def test_a_card_with_half_a_place_keeps_its_text() -> None:
    card = f"# Mine\n{VERDICT_START}\nWords.\n"
    twice = with_verdict(with_verdict(card, "one"), "two")
    assert "Words." in twice and "one" not in twice


def test_a_card_that_is_not_utf8_costs_no_verdict(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_bytes("Größe".encode("latin-1"))
    record_quality(checkpoint, QUALITY)
    assert standing(checkpoint).state == "passed"
