"""Trace files, made up and small: what is read, and what is said of a file that is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.traces import (
    read_azure,
    read_canonical,
    read_mooncake,
    read_trace,
    read_vllm_bench,
    spread_rounded,
)
from burrstone.batching.sim.traffic.workload_types import Workload

AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write lines, or objects as JSON lines, to a file of that name."""

    def to(name: str, *lines: object) -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = tmp_path / name
        path.write_text("\n".join(texts) + "\n")
        return path

    return to


def test_azure(write: Callable[..., Path]) -> None:
    path = write(
        "azure.csv",
        AZURE_HEAD.strip(),
        "2023-11-16 18:15:50.9951690,396,109",
        "2023-11-16 18:15:46.6805900,374,0",
    )
    workload = read_trace(path)
    assert workload.arrival_s == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert workload.input_tokens.tolist() == [374, 396]
    assert workload.output_tokens.tolist() == [1, 109]
    assert workload.prefixes is None


def mooncake_row(time_ms: int, length: int = 1300, hashes: tuple[int, ...] = (1, 2, 3)) -> dict[str, object]:
    return {"timestamp": time_ms, "input_length": length, "output_length": 7, "hash_ids": list(hashes)}


def test_mooncake_keeps_the_hashes_of_full_blocks(write: Callable[..., Path]) -> None:
    workload = read_trace(write("m.jsonl", mooncake_row(0), mooncake_row(3000, 1536), mooncake_row(6000, 100, (9,))))
    assert workload.prefixes is not None
    assert workload.prefixes.block_tokens == 512
    assert workload.prefixes.starts.tolist() == [0, 2, 5, 5]
    assert workload.prefixes.hashes.tolist() == [1, 2, 1, 2, 3]


def test_rounded_times_are_spread_until_the_next_one_and_keep_their_order() -> None:
    times_s = np.repeat([0.0, 3.0, 9.0], 200)
    spread = spread_rounded(times_s, seed=1)
    assert np.all(np.diff(spread) >= 0)
    assert len(np.unique(spread)) == 600
    for time_s, until_s in ((0.0, 3.0), (3.0, 9.0), (9.0, 13.5)):
        part = spread[times_s == time_s]
        assert part.min() >= time_s
        assert part.max() <= until_s
        assert part.mean() == pytest.approx((time_s + until_s) / 2, rel=0.1)
    assert np.array_equal(spread, spread_rounded(times_s, seed=1))
    assert not np.array_equal(spread, spread_rounded(times_s, seed=2))


def test_a_single_time_is_not_spread() -> None:
    assert spread_rounded(np.array([2.0, 2.0]), seed=0).tolist() == [2.0, 2.0]


def test_our_own_format_with_everything(write: Callable[..., Path]) -> None:
    path = write(
        "own.jsonl",
        {"t_ms": 500, "input_len": 40, "output_len": 9, "tenant": "b", "hash_ids": [5, 6, 7], "block": 16,
         "session": "s", "turn": 0, "slo": {"ttft_ms": 1000, "tpot_ms": 50}},
        "",
        {"t_ms": 0, "input_len": 3, "output_len": 4, "tenant": "a", "slo": {"e2e_ms": 60000}},
        {"t_ms": 900, "input_len": 60, "output_len": 9, "tenant": "b", "session": "s", "turn": 1, "parent": 0,
         "tool_ms": 2500},
    )  # fmt: skip
    workload = read_trace(path)
    assert workload.arrival_s == pytest.approx([0.0, 0.5, 0.9])
    assert workload.tenant.tolist() == [1, 0, 0]
    assert workload.program.tolist() == [-1, 0, 0]
    assert workload.turn.tolist() == [0, 0, 1]
    assert workload.after.tolist() == [-1, -1, 1]
    assert workload.think_s.tolist() == [0.0, 0.0, 2.5]
    assert workload.ttft_s.tolist() == [np.inf, 1.0, np.inf]
    assert workload.tpot_s.tolist() == [np.inf, 0.05, np.inf]
    assert workload.e2e_s.tolist() == [60.0, np.inf, np.inf]
    assert workload.prefixes is not None
    assert workload.prefixes.starts.tolist() == [0, 0, 3, 3]
    assert workload.prefixes.block_tokens == 16


def test_a_bench_result_without_its_failed_requests(write: Callable[..., Path]) -> None:
    result = {"start_times": [7.5, 5.0, 6.0], "input_lens": [10, 20, 30], "output_lens": [1, 2, 0], "ttfts": []}
    workload = read_trace(write("bench.json", result))
    assert workload.arrival_s.tolist() == [0.0, 2.5]
    assert workload.input_tokens.tolist() == [20, 10]


OK = {"t_ms": 0, "input_len": 3, "output_len": 4}


@pytest.mark.parametrize(
    ("read", "name", "lines", "problem"),
    [
        (read_azure, "a.csv", ["TIMESTAMP,ContextTokens", "x,1"], ":1: no column GeneratedTokens"),
        (read_azure, "a.csv", [AZURE_HEAD + "yesterday,1,1"], ":2: TIMESTAMP must be a time such as"),
        (read_azure, "a.csv", [AZURE_HEAD + "2023-11-16 18:15:46,0,1"], ":2: ContextTokens must be an integer >= 1"),
        (read_azure, "a.csv", [AZURE_HEAD], ": no requests"),
        (read_mooncake, "m.jsonl", [mooncake_row(0), "{"], ":2: not JSON"),
        (read_mooncake, "m.jsonl", [mooncake_row(0), "[]"], ":2: must be an object, got []"),
        (read_mooncake, "m.jsonl", [mooncake_row(-1)], ":1: timestamp must be milliseconds >= 0, got -1"),
        (read_mooncake, "m.jsonl", [mooncake_row(0) | {"hash_ids": "1"}], ":1: hash_ids must be a list of integers"),
        (read_mooncake, "m.jsonl", [mooncake_row(0, 1300, (1 << 64,))], ":1: hash_ids must be a list of integers"),
        (read_canonical, "c.jsonl", [OK | {"lora": "x"}], ":1: lora is not simulated; known are block, hash_ids"),
        (read_canonical, "c.jsonl", [OK | {"slo": {"ttft": 1}}], ":1: slo.ttft is not simulated; known are e2e_ms"),
        (read_canonical, "c.jsonl", [OK | {"slo": {"ttft_ms": "soon"}}], ":1: slo.ttft_ms must be milliseconds >= 0"),
        (read_canonical, "c.jsonl", [{"t_ms": 0, "input_len": 3}], ":1: output_len is missing; it must be an integer"),
        (read_canonical, "c.jsonl", [OK | {"turn": True}], ":1: turn must be an integer >= 0, got True"),
        (read_canonical, "c.jsonl", [OK, OK | {"hash_ids": [1]}], ":2: block is missing"),
        (read_canonical, "c.jsonl", [OK | {"hash_ids": [1], "block": 16}], ":1: hash_ids has 1 blocks of 16 tokens"),
        (
            read_canonical,
            "c.jsonl",
            [OK | {"hash_ids": [1], "block": 4}, OK | {"hash_ids": [1], "block": 2}],
            ":2: block must be the same in the whole file, got 2 after 4",
        ),
        (read_canonical, "c.jsonl", [OK | {"parent": 3}], ": parent must be the number of a line of the file, from 0"),
        (read_canonical, "c.jsonl", [OK | {"parent": 0}], ": workload: after must be an earlier request"),
        (read_vllm_bench, "b.json", ["{"], ": not JSON"),
        (read_vllm_bench, "b.json", [{"input_lens": [1]}], "start_times is missing; .* save with --save-detailed"),
        (
            read_vllm_bench,
            "b.json",
            [{"start_times": [1], "input_lens": [1, 2], "output_lens": [1]}],
            "must be equally long",
        ),
        (read_trace, "t.txt", [""], ": a trace ends in .csv"),
    ],
)
def test_a_wrong_file_is_told_where_and_why(
    read: Callable[[Path], Workload], name: str, lines: list[object], problem: str, write: Callable[..., Path]
) -> None:
    path = write(name, *lines)
    with pytest.raises(UsageError, match=problem.replace("[", r"\[")) as raised:
        read(path)
    assert str(raised.value).startswith(str(path))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv: cannot be read: No such file"):
        read_trace(tmp_path / "none.csv")
