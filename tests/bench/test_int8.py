"""What INT8 brings: the arithmetic of rounds, and what may be compared. (How long things take is not tested.)"""

import json
from pathlib import Path

import pytest

from burrstone.bench.int8 import Int8Plan, summarize
from burrstone.serving.cli.main import main


def test_each_round_is_compared_with_its_own_rounds_bfloat16() -> None:
    # The machine slows down threefold in the second round; the ratio is the same.
    found = {
        "bf16": {1: [60.0, 20.0], 32: [600.0, 200.0]},
        "int8": {1: [120.0, 40.0], 32: [660.0, 220.0]},
        "bf16 again": {1: [60.0, 20.0], 32: [600.0, 200.0]},
    }
    rows = summarize(Int8Plan(model="/models/some-model", rounds=2), found)
    one, many = rows["tokens_per_s_ratio_1"], rows["tokens_per_s_ratio_32"]
    assert (one["value"], one["rounds"], one["ok"], one["goal"]) == (2.0, [2.0, 2.0], True, ">= 1.5")
    assert (many["value"], many["ok"], many["noise"]) == (1.1, False, 0.0)
    assert rows["setting"]["model"] == "some-model"


def test_noise_is_how_far_bfloat16_is_from_itself() -> None:
    found = {
        "bf16": {1: [50.0, 100.0], 32: [100.0, 100.0]},
        "int8": {1: [75.0, 150.0], 32: [100.0, 100.0]},
        "bf16 again": {1: [50.0, 80.0], 32: [100.0, 100.0]},
    }
    row = summarize(Int8Plan(rounds=2), found)["tokens_per_s_ratio_1"]
    assert row["noise"] == 0.125 and row["rounds"] == [1.5, 1.667]


@pytest.mark.parametrize(
    ("config", "flags", "complaint"),
    [
        ({}, ["--quantize-lm-head"], "--quantize-lm-head is for the checkpoint that is made"),
        ({}, [], "is no w8a8-int8 checkpoint"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, [], "is no w8a8-int8"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_before_anything_starts(
    config: dict[str, object], flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["bench", "int8", "--checkpoint", str(tmp_path), *flags]) == 2
    assert complaint in capsys.readouterr().err
