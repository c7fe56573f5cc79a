"""The step log on disk: whole lines whatever happens, and never more than is allowed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from burrstone.batching.core.step_log import LogHeader, StepRecord, read_log
from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.serving.engine.scheduling.step_log_writer import StepLogWriter

HEADER = LogHeader("fcfs", 8, 64, 16, 63, True, {"base_s": DEFAULT_STEP_MODEL.base_s})


def record(step: int) -> StepRecord:
    return StepRecord(step, 1.5, 2**64 - 1, 3, 4, 5, elapsed_s=0.1)


def steps(path: Path) -> list[int]:
    return [each.step for each in read_log(path.read_text().splitlines())[1]]


def test_an_idle_engine_keeps_nothing_back(tmp_path: Path) -> None:
    writer = StepLogWriter(tmp_path / "sub" / "log", HEADER)
    writer.write(record(0), idle=False)
    assert steps(writer.path) == []
    writer.write(record(1), idle=True)
    assert steps(writer.path) == [0, 1]
    writer.write(record(2), idle=False)
    writer.close()
    assert steps(writer.path) == [0, 1, 2]
    writer.write(record(3), idle=True)
    assert steps(writer.path) == [0, 1, 2]


def test_the_log_before_this_one_is_kept(tmp_path: Path) -> None:
    for number in range(3):
        writer = StepLogWriter(tmp_path / "log", HEADER)
        writer.write(record(number), idle=True)
        writer.close()
    assert (steps(tmp_path / "log"), steps(tmp_path / "log.1")) == ([2], [1])


def test_a_log_that_is_large_enough_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = StepLogWriter(tmp_path / "log", HEADER, max_bytes=2000)
    for number in range(100):
        writer.write(record(number), idle=True)
    assert writer.path.stat().st_size <= 2000
    assert steps(writer.path) == list(range(len(steps(writer.path))))
    assert [line.message for line in caplog.records] == [
        f"the step log {writer.path} ends here: it has reached its largest size"
    ]


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_step_log_writer import HEADER, StepLogWriter, record
        writer = StepLogWriter(Path(sys.argv[1]), HEADER)
        number = 0
        while True:
            writer.write(record(number), idle=False)
            number += 1
            if number == 1000:
                print("going", flush=True)
    """
    log = tmp_path / "log"
    command = [sys.executable, "-c", textwrap.dedent(script), str(log), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONSAFEPATH": "1"}) as process:
        assert process.stdout is not None and process.stdout.readline() == b"going\n"
        process.send_signal(signal.SIGKILL)
    assert log.read_bytes().endswith(b"\n")
    found = steps(log)
    assert found == list(range(len(found))) and len(found) > 900
