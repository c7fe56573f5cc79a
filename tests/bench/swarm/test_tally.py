"""Tallies say what `summarize` says of the same records, whole or merged."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burrstone.batching.sim.traffic.workload import Slo
from burrstone.bench.load.record import Record
from burrstone.bench.load.summary import duration_s, summarize
from burrstone.bench.swarm.ledger import Ledger, Report
from burrstone.bench.swarm.tally import FIGURES, Tally, together


@st.composite
def a_record(draw: Any) -> Record:
    intended_s, late_s = draw(st.floats(0, 10)), draw(st.floats(0, 0.02))
    record = Record(0, intended_s, slo=Slo(ttft_s=1.0, tpot_s=0.2), sent_s=intended_s + late_s)
    record.pieces_s = [
        record.sent_s + at_s for at_s in sorted(draw(st.lists(st.floats(0.001, 5), min_size=1, max_size=9)))
    ]
    record.ended_s = record.pieces_s[-1] + 0.01
    record.output_tokens, record.prompt_tokens = draw(st.integers(1, 30)), draw(st.integers(1, 99))
    record.error = draw(st.sampled_from([None, None, None, "503 overloaded"]))
    return record


RECORDS = st.lists(a_record(), min_size=1, max_size=12)


def tally_of(records: list[Record]) -> Tally:
    made = Tally()
    for record in records:
        made.add(record)
    return made


@given(RECORDS)
def test_the_figures_are_those_of_the_records(records: list[Record]) -> None:
    exact, tally = summarize(records, duration_s(records)), tally_of(records)
    found = tally.summary(tally.ended_s)
    same = ("offered", "completed", "failed", "errors", "total_input_tokens", "total_output_tokens", "slo_attainment")
    assert {name: found[name] for name in same} == {name: exact[name] for name in same}
    rates = (
        "duration",
        "request_throughput",
        "output_throughput",
        "goodput_rps",
        *(f"mean_{name}_ms" for name in FIGURES),
    )
    for name in rates:
        assert found[name] == (None if exact[name] is None else pytest.approx(exact[name]))
    assert set(found) <= set(exact)


@given(RECORDS, RECORDS)
def test_parts_merged_are_the_whole(one: list[Record], two: list[Record]) -> None:
    merged, whole = together([tally_of(one), tally_of(two)]), tally_of(one + two)
    span_s = whole.ended_s
    assert merged.ended_s == span_s
    for name, value in whole.summary(span_s).items():
        assert merged.summary(span_s)[name] == (pytest.approx(value) if isinstance(value, float) else value)


@given(RECORDS)
def test_reports_go_through_json(records: list[Record]) -> None:
    report = Report(3, True, {"gold": tally_of(records)}, {"gold": 99})
    assert Report.of_json(json.loads(json.dumps(report.as_json()))) == report


def test_a_call_that_was_never_sent_counts_as_offered_and_failed() -> None:
    tally = tally_of([Record(0, 1.0, error="the call before it failed")])
    found = tally.summary(tally.ended_s)
    assert (found["offered"], found["failed"], found["slo_attainment"]) == (1, 1, 0.0)
    assert found["p99_ttft_ms"] is None and found["goodput_rps"] == 0.0


def late(by_s: float) -> Record:
    return Record(0, 1.0, sent_s=1.0 + by_s, pieces_s=[2.0], ended_s=2.0, output_tokens=1, error=None)


def test_a_process_that_was_late_is_named_however_punctual_the_others_were() -> None:
    ledger = Ledger()
    ledger.begin()
    ledger.take("one", Report(1, False, {"a": tally_of([late(0.0)] * 999)}))
    ledger.take("two", Report(1, True, {"a": tally_of([late(0.5)]), "b": tally_of([late(0.5)])}))
    found = ledger.summary()
    assert found["client_was_bottleneck"] and found["lateness_p99_ms"] == pytest.approx(500, rel=0.011)
    assert (found["offered"], found["tenants"]["a"]["offered"]) == (1001, 1000)
    told, code = ledger.verdict()
    assert told is not None and "two up to" in told and "one up to" not in told and code == 1
    assert found["warning"] == told
    assert ledger.done(["two"]) and not ledger.done(["one", "two"])


def test_reports_replace_one_another_and_those_of_earlier_runs_are_dropped() -> None:
    ledger = Ledger()
    ledger.begin()
    for size in (1, 3):
        ledger.take("one", Report(1, False, {"a": tally_of([late(0.0)] * size)}))
    assert ledger.summary()["offered"] == 3 and ledger.verdict() == (None, 0)
    ledger.begin()
    ledger.take("one", Report(1, True, {"a": tally_of([late(0.0)])}))
    assert ledger.summary()["offered"] == 0 and not ledger.done(["one"])


@pytest.mark.parametrize(("late_s", "code"), [(0.004, 0), (0.006, 1)])
def test_the_exit_code_tells_of_lateness(late_s: float, code: int) -> None:
    ledger = Ledger()
    ledger.begin()
    ledger.take("one", Report(1, True, {"a": tally_of([late(late_s)] * 9)}))
    assert ledger.verdict()[1] == code and ledger.summary()["client_was_bottleneck"] == bool(code)
    ledger.error = "nothing to offer"
    assert ledger.verdict() == ("nothing to offer", 2)
    ledger.begin()
    assert ledger.verdict() == (None, 0)


def test_what_a_lost_process_held_was_offered_and_failed() -> None:
    ledger = Ledger()
    ledger.begin()
    ledger.take("one", Report(1, True, {"a": tally_of([late(0.0)] * 4)}, {"a": 4}))
    ledger.take("two", Report(1, False, {"a": tally_of([late(0.0)])}, {"a": 3, "b": 2}))
    assert ledger.summary()["offered"] == 5
    ledger.lost = {"two"}
    found, (told, code) = ledger.summary(), ledger.verdict()
    assert (found["offered"], found["completed"], found["failed"]) == (9, 5, 4)
    assert found["errors"] == {"its worker was lost": 4} and found["slo_attainment"] == pytest.approx(5 / 9)
    assert {name: tenant["failed"] for name, tenant in found["tenants"].items()} == {"a": 2, "b": 2}
    assert told is not None and "two" in told and code == 1
    # It came back.
    ledger.lost = set()
    ledger.take(
        "two", Report(1, True, {"a": tally_of([late(0.0)] * 3), "b": tally_of([late(0.0)] * 2)}, {"a": 3, "b": 2})
    )
    assert ledger.summary()["failed"] == 0 and ledger.verdict() == (None, 0)


def test_curves_are_of_the_last_seconds() -> None:
    ledger = Ledger()
    ledger.begin()
    for second in range(0, 31, 2):
        ledger.take("one", Report(1, False, {"a": tally_of([late(0.0)] * 10 * (second + 1))}))
        ledger.sample(float(second))
    last = ledger.history[-1]
    assert last["at_s"] == 30 and last["tenants"]["a"]["tokens_per_s"] == pytest.approx(10)
    assert last["tenants"]["a"]["ttft_p95_ms"] == pytest.approx(1000, rel=0.01)
