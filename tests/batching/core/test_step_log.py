"""What a live engine writes down is read back to the last bit."""

import pytest

from burrstone.batching.core.step_log import (
    Arrived,
    Ended,
    LogHeader,
    StepLoad,
    StepRecord,
    read_log,
    scheduled_hash,
)
from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.errors import UsageError

HEADER = LogHeader("fcfs", 8, 64, 16, 100, True, {"base_s": DEFAULT_STEP_MODEL.base_s})
ARRIVED = Arrived(3, 0.1 + 0.2, 17, 5, 4.5, ttft_deadline_s=1.3, block_hashes=(2**64 - 1, 7))


def test_a_log_is_read_back_to_the_last_bit() -> None:
    steps = [
        StepRecord(
            0,
            1 / 3,
            2**64 - 1,
            scheduled_hash([(3, 17)]),
            100,
            17,
            (ARRIVED, Ended(2, True, 0)),
            StepLoad(17, 0, 0, 144.5),
        ),
        StepRecord(1, 2 / 3, 1, 2, 98, 1, elapsed_s=0.25),
    ]
    header, read = read_log([HEADER.to_line(), *[step.to_line() for step in steps], "\n"])
    assert header == HEADER
    assert list(read) == steps


def test_the_hash_of_what_was_scheduled_knows_order_and_tokens() -> None:
    pairs = [(1, 2), (3, 4)]
    hashes = {scheduled_hash(each) for each in (pairs, pairs[::-1], [(1, 2), (3, 5)], [(1, 2)], [])}
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "first line must describe the engine"),
        (["{}"], "first line must describe the engine"),
        ([LogHeader("fcfs", 8, 64, 16, 100, True, {}, version=0).to_line()], "version 0, this reads 2"),
        ([HEADER.to_line(), '{"step": 1}'], "not a step record"),
        ([HEADER.to_line(), "[]"], "not a step record"),
    ],
)
def test_what_is_not_a_log_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(read_log(lines)[1])
