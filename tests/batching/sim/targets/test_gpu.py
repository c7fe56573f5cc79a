"""Target 3 on a made-up recording: the rows it gives, what it reads, and what it says where recordings are absent."""

import json
from pathlib import Path

import numpy as np
import pytest

from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.sim.ahead import simulate_ahead
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.targets import gpu as targets_gpu
from burrstone.batching.sim.targets.judge import Context, Skipped
from burrstone.batching.sim.traffic.workload_types import Workload


def record(folder: Path, file: str, engines: int = 1) -> None:
    """A run of the simulator itself, written down as recordings are."""
    rng = np.random.default_rng(2)
    load = Workload(np.cumsum(rng.exponential(0.4, 60)), rng.integers(50, 2000, 60), rng.integers(20, 120, 60))
    spec = EngineSpec(max_num_seqs=8, num_blocks=800, prefix_caching=True, step_model=DEFAULT_STEP_MODEL)
    result = simulate_ahead(spec, load, engines)
    meta = {
        "engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 2048, "data_parallel_size": engines},
        "kv_cache": {"num_gpu_blocks": 801, "enable_prefix_caching": True},
    }
    (folder / f"{file}.meta.json").write_text(json.dumps(meta))
    with (folder / f"{file}.requests.jsonl").open("w") as lines:
        for row in rng.permutation(60):
            request = {
                "input_toks": int(load.input_tokens[row]),
                "output_toks": int(load.output_tokens[row]),
                "arrival_time": 1.7e9 + float(load.arrival_s[row]),
                "queued_ts": 50 + float(result.queued_s[row]),
                "first_token_ts": 50 + float(result.first_token_s[row]),
                "last_token_ts": 50 + float(result.last_token_s[row]),
            }
            lines.write(json.dumps(request) + "\n")


def test_a_recording_of_the_simulator_is_told_almost_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "vllm_gpu_truth"
    folder.mkdir()
    for recording in targets_gpu.RECORDINGS:
        record(folder, recording.file, engines=2 if recording.name == "moe-dp2" else 1)
    monkeypatch.setattr(targets_gpu, "_SEEDS", (0,))
    monkeypatch.setattr(targets_gpu, "_ROUNDS", 10)
    told: list[float] = []
    rows = targets_gpu.run(Context(traces=tmp_path, progress=lambda share, _: told.append(share)))
    assert [name for name in rows if name.startswith("3-rtx4090")] == [
        f"3-rtx4090-{kind}-{share}" for kind in ("ttft", "tpot") for share in ("p50", "p90", "p99")
    ]
    assert len(rows) == 18
    assert all(row["value"] is not None and row["value"] < 0.05 for row in rows.values())
    assert {row["goal"] for row in rows.values()} == {"<= 0.05", "<= 0.12", "<= 0.15"}
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


def test_one_of_the_blocks_holds_nothing_and_unknown_blocks_are_enough(tmp_path: Path) -> None:
    record(tmp_path, "some")
    assert targets_gpu.read_run(tmp_path, "some").spec.num_blocks == 800
    meta = json.loads((tmp_path / "some.meta.json").read_text())
    del meta["kv_cache"]
    (tmp_path / "some.meta.json").write_text(json.dumps(meta))
    spec = targets_gpu.read_run(tmp_path, "some").spec
    assert spec.num_blocks == 100_000
    assert not spec.prefix_caching


def test_without_recordings_it_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="needs vllm_gpu_truth"):
        targets_gpu.run(Context(traces=tmp_path))
