"""Target 7 on made-up traces: which rows it gives, and what it says where traces are absent."""

import json
from pathlib import Path

import numpy as np
import pytest

from burrstone.batching.sim.targets import routing as targets_routing
from burrstone.batching.sim.targets.judge import Context, Skipped


def write_traces(folder: Path) -> None:
    """300 prompts of 20 conversations, and 300 chats."""
    rng = np.random.default_rng(3)
    with (folder / "mooncake_conversation_trace.jsonl").open("w") as file:
        for number in range(300):
            talk, blocks = int(rng.integers(20)), int(rng.integers(20, 60))
            shared = [talk * 100 + block for block in range(blocks - 4)]
            row = {
                "timestamp": number // 3 * 3000,
                "input_length": blocks * 512 + 100,
                "output_length": 10,
                "hash_ids": shared + [100_000 + number * 10 + block for block in range(5)],
            }
            file.write(json.dumps(row) + "\n")
    with (folder / "azure_llm_2023_conv.csv").open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for number in range(300):
            file.write(f"2023-11-16 18:{number // 60:02}:{number % 60:02}.5,{int(rng.integers(200, 4000))},10\n")


def test_each_row_is_measured_against_its_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_traces(tmp_path)
    monkeypatch.setattr(targets_routing, "_SEEDS", (0,))
    told: list[float] = []
    rows = targets_routing.run(Context(traces=tmp_path, progress=lambda share, _: told.append(share)))
    assert {name: row["goal"] for name, row in rows.items()} == {
        "7-routing-speed": ">= 1.15",
        "7-routing-hits": ">= 2.5",
        "7-routing-stale": ">= 1.05",
        "7-routing-fooled": ">= 0.95",
        "7-routing-no-reuse": ">= 0.95",
    }
    assert rows["7-routing-no-reuse"]["ok"]
    # Too few prompts to queue for long, so speeds tell nothing here; hits do.
    assert rows["7-routing-hits"]["ok"]
    assert told == [0.0]


def test_without_traces_it_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(Skipped, match=r"needs mooncake_conversation_trace\.jsonl"):
        targets_routing.run(Context(traces=tmp_path))
