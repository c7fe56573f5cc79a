"""quality.json speaks for the bytes that were judged, and for no others."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from quant_runs import RTN, Plan, contents, here
from tiny_models import edit_json, tiny_model

from burrstone.quant.quality import QUALITY_FILE, standing, weights_digest, write_quality

FOUND: dict[str, Any] = {
    "verdict": "pass",
    "reasons": [],
    "perplexity_ratio": 1.00123,
    "mean_kl": 0.00456,
    "reference": {"name": "tiny", "weights_digest": "sha256:0"},
    "date": "2026-11-28",
    "margins": {"perplexity": 0.02, "mean_kl": 0.02, "task": 0.02},
    "text": {"name": "chats.jsonl", "shape": [64, 512], "notice": None},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    here(Plan(tiny_model(folder / "tiny", num_hidden_layers=2), folder / "out", RTN)).run()
    return folder / "out"


@pytest.fixture
def judged(made: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "judged"))
    write_quality(folder, FOUND)
    return folder


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_passed_and_a_failed_verdict_are_told_with_their_figures(judged: Path) -> None:
    figures = "perplexity x1.0012, mean KL 0.0046 against tiny; allowed x1.02 and 0.02, on 64 rows of chats.jsonl"
    assert standing(judged) == ("passed", f"passed on 2026-11-28: {figures}")
    write_quality(judged, FOUND | {"verdict": "fail"})
    assert standing(judged) == ("failed", f"failed on 2026-11-28: {figures}")
    for verdict in ("PASS", "", None, True):
        write_quality(judged, FOUND | {"verdict": verdict})
        assert standing(judged).state == "failed"


def test_what_was_passed_and_on_what_is_told_beside_it(judged: Path) -> None:
    wide = {"margins": FOUND["margins"] | {"perplexity": 9.0}}
    smoke = {"text": {"name": "smoke", "shape": [8, 16], "notice": "a smoke test"}}
    write_quality(judged, FOUND | wide | smoke)
    assert standing(judged).text.endswith("; allowed x10 and 0.02, on 8 rows of smoke, a SMOKE SET")


def test_further_templates_are_part_of_what_was_judged(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "m"))
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").write_text("{{ messages }}")
    write_quality(folder, FOUND)
    assert standing(folder).state == "passed"
    (templates / "tools.jinja").write_text("{{ tools }}")
    assert standing(folder).state == "stale"


def test_it_is_bound_to_the_files_that_were_judged_and_not_to_those_of_today(judged: Path) -> None:
    before = weights_digest(judged)
    flip(judged / "model-00001-of-00003.safetensors", 4000)
    write_quality(judged, FOUND | {"weights_digest": before})
    assert standing(judged).state == "stale"


def test_without_a_file_the_command_that_writes_one_is_told(made: Path) -> None:
    assert standing(made) == (
        "none",
        f"no quality.json; `burrstone quantize eval REFERENCE {made}` writes one",
    )


def test_any_flipped_bit_of_weights_configuration_or_tokenizer_makes_it_stale(judged: Path) -> None:
    draw = random.Random(0)
    files = [file for file in sorted(judged.iterdir()) if file.name not in (QUALITY_FILE, "README.md")]
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} < {file.name for file in files}
    for file in files:
        bits = file.stat().st_size * 8
        for bit in (0, bits - 1, *(draw.randrange(bits) for _ in range(25))):
            flip(file, bit)
            assert standing(judged) == (
                "stale",
                "the verdict of 2026-11-28 is about other weights, configuration or tokenizer; evaluate again",
            ), (file, bit)
            flip(file, bit)
    assert standing(judged).state == "passed"


def test_a_file_more_or_less_or_of_another_name_makes_it_stale(judged: Path) -> None:
    shard = judged / "model-00001-of-00003.safetensors"
    shutil.copy(shard, judged / "more.safetensors")
    assert standing(judged).state == "stale"
    (judged / "more.safetensors").unlink()
    shard.rename(judged / "model-00001-of-00004.safetensors")
    assert standing(judged).state == "stale"
    (judged / "model-00001-of-00004.safetensors").rename(shard)
    other = judged / "model-00002-of-00003.safetensors"
    for source, target in ((shard, judged / "x"), (other, shard), (judged / "x", other)):
        source.rename(target)
    assert standing(judged).state == "stale"
    for source, target in ((shard, judged / "x"), (other, shard), (judged / "x", other)):
        source.rename(target)
    assert standing(judged).state == "passed"
    (judged / "tokenizer.json").unlink()
    assert standing(judged).state == "stale"


def test_what_only_tells_of_it_may_change(judged: Path) -> None:
    (judged / "README.md").write_text("another card")
    (judged / ".cache").write_text("x")
    (judged / "logs").mkdir()
    (judged / "logs" / "today").write_text("x")
    shutil.move(judged, judged.with_name("moved"))
    assert standing(judged.with_name("moved")).state == "passed"


@pytest.mark.parametrize("key", sorted([*FOUND, "format_version", "weights_digest", "digest"]))
def test_an_edited_verdict_is_unreadable(key: str, judged: Path) -> None:
    file = judged / QUALITY_FILE
    whole = json.loads(file.read_text())
    edit_json(file, **{key: 7})
    assert standing(judged).state == "unreadable"
    file.write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
    assert standing(judged).state == "unreadable"
    file.write_text(json.dumps(whole))
    assert standing(judged).state == "passed"


def test_a_failed_verdict_cannot_be_edited_into_a_passed_one(judged: Path) -> None:
    write_quality(judged, FOUND | {"verdict": "fail", "mean_kl": 5.0})
    edit_json(judged / QUALITY_FILE, verdict="pass")
    assert standing(judged) == ("unreadable", "quality.json was changed after it was written; evaluate again")
    edit_json(judged / QUALITY_FILE, verdict="fail", added=1)
    assert standing(judged).state == "unreadable"


def test_a_verdict_copied_from_another_checkpoint_is_stale(judged: Path, tmp_path: Path) -> None:
    here(Plan(tiny_model(tmp_path / "tiny", seed=1, num_hidden_layers=2), tmp_path / "other", RTN)).run()
    shutil.copy(judged / QUALITY_FILE, tmp_path / "other")
    assert standing(tmp_path / "other").state == "stale"


def test_another_format_is_not_guessed_at(judged: Path) -> None:
    for other in (1, 3):
        edit_json(judged / QUALITY_FILE, format_version=other)
        assert standing(judged) == ("unreadable", f"quality.json is of format {other}, not 2")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '"x"', "5", "\xff\xfe", "NaN"])
def test_what_is_no_verdict_is_unreadable(content: str, judged: Path) -> None:
    (judged / QUALITY_FILE).write_bytes(content.encode("latin-1"))
    state, text = standing(judged)
    assert state == "unreadable"
    assert text.startswith("quality.json ") and text.endswith("; evaluate again")


def test_nesting_without_end_is_unreadable(judged: Path) -> None:
    (judged / QUALITY_FILE).write_text("[" * 100_000)
    assert standing(judged).state == "unreadable"


def test_writing_replaces_whole_and_leaves_nothing_beside(judged: Path) -> None:
    before = set(contents(judged))
    write_quality(judged, FOUND | {"mean_kl": 0.001})
    assert set(contents(judged)) == before
    written = json.loads((judged / QUALITY_FILE).read_text())
    assert written["mean_kl"] == 0.001
    assert written["weights_digest"] == weights_digest(judged)
    assert standing(judged).state == "passed"


def test_the_digest_is_of_names_and_contents_alone(judged: Path, made: Path) -> None:
    assert weights_digest(judged) == weights_digest(made)
    assert weights_digest(judged).startswith("sha256:") and len(weights_digest(judged)) == 7 + 64


def test_asking_loads_neither_torch_nor_transformers(judged: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from burrstone.quant.quality import standing;"
        f"print(standing(Path({str(judged)!r})).state, sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "passed []\n"
