"""Target 9 on made-up traces: its rows, and what it says of traces that are absent."""

from pathlib import Path

import numpy as np
import pytest

from burrstone.batching.sim.targets import shapes as targets_shapes
from burrstone.batching.sim.targets.judge import Context


def write_azure(path: Path, tokens: int, seed: int) -> None:
    """400 prompts a little longer than a power of two, which pads them to twice their length."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for number in range(400):
            time = f"2023-11-16 18:{number // 60:02}:{number % 60:02}.5"
            file.write(f"{time},{tokens + int(rng.integers(1, 100))},{int(rng.integers(1, 40))}\n")


def test_each_trace_has_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_azure(tmp_path / "azure_llm_2023_conv.csv", 1024, 1)
    write_azure(tmp_path / "azure_llm_2023_code.csv", 2048, 2)
    monkeypatch.setattr(targets_shapes, "_SPEEDS", (8.0, 16.0, 32.0))
    rows = targets_shapes.run(Context(traces=tmp_path))
    for name in ("conv", "code"):
        saved = rows[f"9-padding-saved-{name}"]["value"]
        assert saved is not None
        assert saved > 0.4
        assert rows[f"9-misses-{name}"] == {"value": 0.0, "goal": "<= 0", "ok": True}
        for mode in ("static-batch", "one-prompt"):
            assert rows[f"9-goodput-{mode}-{name}"]["goal"] == ">= 1.1"
    # Two thousand tokens a prompt overload the engine at these speeds; one thousand does not.
    assert rows["9-goodput-static-batch-code"]["ok"]
    assert rows["9-goodput-one-prompt-code"]["ok"]
    absent = rows["9-padding-saved-mooncake"]
    assert absent["ok"] is None
    assert "needs mooncake_conversation_trace.jsonl" in absent["skipped"]


def test_a_length_above_the_maximum_would_be_counted() -> None:
    lengths = np.array([100, 200, 300])
    assert targets_shapes.compare_bounds(lengths, np.array([100, 2000]), 1024)[1] == 1
