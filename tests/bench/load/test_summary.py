"""Figures from records: by definition, over all that was offered, and back from the file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.batching.sim.traffic.workload import Slo
from burrstone.bench.load.record import Record, read_records, write_records
from burrstone.bench.load.summary import by_tenant, detailed, summarize


def answered(number: int, ttft_s: float, gaps_s: list[float], *, late_s: float = 0.0, slo: Slo = Slo()) -> Record:
    intended_s = float(number)
    pieces_s = (intended_s + ttft_s + np.cumsum([0.0, *gaps_s])).tolist()
    return Record(
        *(number, intended_s, "default", None, slo, intended_s + late_s, pieces_s, pieces_s[-1]),
        output_tokens=len(pieces_s),
        prompt_tokens=10,
        error=None,
    )


def test_times_count_from_the_intended_sending() -> None:
    record = answered(3, 0.5, [0.1, 0.3], late_s=0.2)
    assert record.ttft_s == pytest.approx(0.5) and record.ttft_sent_s == pytest.approx(0.3)
    assert record.tpot_s == pytest.approx(0.2) and record.e2e_s == pytest.approx(0.9)
    assert record.late_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(), True),
        (Slo(ttft_s=0.51, tpot_s=0.21, e2e_s=0.91), True),
        (Slo(ttft_s=0.49), False),
        (Slo(tpot_s=0.19), False),
        (Slo(e2e_s=0.89), False),
    ],
)
def test_good_is_within_every_slo(slo: Slo, good: bool) -> None:
    assert answered(0, 0.5, [0.1, 0.3], slo=slo).good == good


def test_an_answer_of_one_token_has_no_tpot() -> None:
    record = answered(0, 0.5, [], slo=Slo(tpot_s=0.0))
    assert record.tpot_s is None and record.good
    assert summarize([record], 1.0)["mean_tpot_ms"] is None


def test_what_failed_is_offered_and_bad() -> None:
    records = [answered(0, 0.1, [0.1]), answered(1, 0.9, [0.1], slo=Slo(ttft_s=0.5)), Record(2, 2.0, error="429 full")]
    found = summarize(records, 10.0)
    assert (found["offered"], found["completed"], found["failed"]) == (3, 2, 1)
    assert found["goodput_rps"] == 0.1 and found["slo_attainment"] == pytest.approx(1 / 3)
    assert found["errors"] == {"429 full": 1}
    assert found["output_throughput"] == 0.4 and found["median_ttft_ms"] == pytest.approx(500)
    assert summarize([Record(0, 0.0)], 1.0)["mean_ttft_ms"] is None
    assert list(by_tenant(records, 10.0)) == ["default"]


def test_a_late_client_is_its_own_bottleneck() -> None:
    assert not summarize([answered(n, 0.1, [], late_s=0.004) for n in range(9)], 9.0)["client_was_bottleneck"]
    late = summarize([answered(n, 0.1, [], late_s=0.02) for n in range(9)], 9.0)
    assert late["client_was_bottleneck"] and late["lateness_p99_ms"] == pytest.approx(20)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.lists(st.floats(0, 1), max_size=5), st.booleans()), min_size=1, max_size=20)
)
def test_a_file_holds_all_of_it(rows: list[tuple[float, list[float], bool]]) -> None:
    import tempfile

    records = [
        answered(number, ttft_s, gaps_s, slo=Slo(ttft_s=2.0) if failed else Slo())
        if not failed
        else Record(number, 1.0)
        for number, (ttft_s, gaps_s, failed) in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "records.jsonl"
        write_records(file, records)
        back = list(read_records(file))
        # Goodput from the file alone, without our code.
        good = sum(
            row["error"] is None
            and (row["slo"]["ttft_s"] is None or row["pieces_s"][0] - row["intended_s"] <= row["slo"]["ttft_s"])
            for row in map(json.loads, file.read_text().splitlines())
        )
    assert repr(back) == repr(records)
    assert summarize(back, 10.0)["goodput_rps"] == pytest.approx(good / 10.0)


def test_the_detailed_lists_are_vllms() -> None:
    records = [answered(0, 0.5, [0.1, 0.3], late_s=0.1), Record(1, 1.0, error="refused")]
    found = detailed(records)
    assert found["ttfts"] == pytest.approx([0.4, 0.0]) and found["errors"] == ["", "refused"]
    assert found["latencies"] == pytest.approx([0.8, 0.0]) and found["start_times"] == pytest.approx([0.1, 1.0])
    assert found["itls"][0] == pytest.approx([0.1, 0.3]) and found["output_lens"] == [3, 0]
