"""Targets: which are run, what is skipped and why, and what counts as missed."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli import targets as cli_targets
from burrstone.batching.sim.targets import judge
from burrstone.batching.sim.targets.judge import Context, Row, Skipped, at_least, at_most, measure, met, skipped
from burrstone.serving.cli.main import main

Capture = pytest.CaptureFixture[str]


def needs_a_trace(context: Context) -> dict[str, Row]:
    return {"7-hits": at_least(len(context.trace("hits.jsonl").read_text()), 3)}


def fails(context: Context) -> dict[str, Row]:
    context.progress(0.5, "half")
    return {"5-capacity": at_least(1.2, 1.5), "5-batch": skipped(">= 0.95", "no time")}


def test_rows_say_what_was_wanted() -> None:
    assert at_least(1.5, 1.5) == {"value": 1.5, "goal": ">= 1.5", "ok": True}
    assert at_most(3, 2) == {"value": 3.0, "goal": "<= 2", "ok": False}
    assert at_least(float("nan"), 1)["ok"] is False
    assert met({"a": at_least(2, 1), "b": skipped(">= 1", "why")})
    assert not met({"a": at_least(2, 1), "b": at_least(0, 1)})


def test_a_target_without_its_trace_is_skipped_with_the_fix(tmp_path: Path) -> None:
    row = measure("7-routing", needs_a_trace, Context())["7-routing"]
    assert row["ok"] is None
    assert "needs hits.jsonl: name the folder of traces with --traces or BURRSTONE_TRACES" in row["skipped"]
    assert "which is not in" in measure("7-routing", needs_a_trace, Context(tmp_path))["7-routing"]["skipped"]
    (tmp_path / "hits.jsonl").write_text("four")
    assert measure("7-routing", needs_a_trace, Context(tmp_path)) == {"7-hits": at_least(4, 3)}


def test_the_folder_comes_by_flag_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(judge.TRACES_ENV, raising=False)
    assert judge.traces_folder(None) is None
    monkeypatch.setenv(judge.TRACES_ENV, str(tmp_path))
    assert judge.traces_folder(None) == tmp_path
    with pytest.raises(UsageError, match="nowhere is no folder; name the one that holds"):
        judge.traces_folder(Path("nowhere"))


@pytest.fixture
def two_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("5-slo", fails), ("7-routing", needs_a_trace)]
    monkeypatch.setattr(cli_targets, "runs", lambda only: [one for one in found if not only or int(one[0][0]) in only])
    monkeypatch.delenv(judge.TRACES_ENV, raising=False)


@pytest.mark.usefixtures("two_targets")
def test_a_missed_target_is_1_and_skipped_ones_are_not(capsys: Capture) -> None:
    assert main(["sim", "targets", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert rows["5-capacity"] == {"value": 1.2, "goal": ">= 1.5", "ok": False}
    assert rows["7-routing"]["ok"] is None
    assert main(["sim", "targets", "--only", "7", "--json"]) == 0


@pytest.mark.usefixtures("two_targets")
def test_the_table_says_why_something_was_skipped(capsys: Capture) -> None:
    main(["sim", "targets"])
    printed = capsys.readouterr().out
    assert "MISSED" in printed
    assert "5-batch: no time" in printed


def test_every_topic_has_its_module() -> None:
    folder = Path(judge.__file__).parent
    assert set(judge.TOPICS.values()) <= {path.stem for path in folder.glob("*.py")}
    for topic in judge.TOPICS.values():
        assert callable(import_module(f"burrstone.batching.sim.targets.{topic}").run)


def test_an_unknown_target_is_2_and_names_those_that_exist(capsys: Capture) -> None:
    assert main(["sim", "targets", "--only", "2"]) == 2
    assert "--only 2: no such target; there are 3 gpu, " in capsys.readouterr().err


def test_skipped_is_no_failure_of_the_target() -> None:
    def raises(context: Context) -> dict[str, Row]:
        raise Skipped("because")

    assert met(measure("3-gpu", raises, Context()))
