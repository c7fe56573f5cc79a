"""The conformance report: every suite has a runner and a row, and no failure passes without a reason."""

import tomllib
from pathlib import Path

from suite_checks import RUNNERS, Check, junit_checks
from suite_report import SuiteRun, page_lines, unexplained

TABLE = tomllib.loads((Path(__file__).parent / "suites.toml").read_text())
SUITES = {name: entry for name, entry in TABLE.items() if name != "known"}
IMAGE = Check("anth-image-input", "fail", "HTTP 400")


def run_of(suite: str, *checks: Check, engine: str = "real", unavailable: str | None = None) -> SuiteRun:
    return SuiteRun(suite, engine, "2026-01-01", 1, checks, unavailable)


def test_every_suite_has_a_runner_and_exact_pins() -> None:
    assert SUITES.keys() == RUNNERS.keys()
    for suite in SUITES.values():
        first = (suite.get("npm") or suite["python"])[0]
        assert "==" in first or "@" in first


def test_only_failures_with_a_reason_may_stay() -> None:
    known = TABLE["known"]
    assert unexplained(known, run_of("llm-comply-anthropic", IMAGE)) == []
    assert unexplained(known, run_of("langchain", IMAGE)) == [IMAGE]
    free_choice = Check("single-call whole (scenario)", "fail")
    assert unexplained(known, run_of("canitoolcall", free_choice)) == []
    assert unexplained(known, run_of("canitoolcall", free_choice, engine="scripted")) == [free_choice]


def test_page_counts_and_says_why_a_suite_did_not_run() -> None:
    runs = [
        run_of("llm-comply-anthropic", Check("a", "pass"), Check("b", "skip", "no key"), Check("c", "fail", "broke")),
        run_of("vercel-ai", unavailable="node and npm are not installed"),
    ]
    page = "\n".join(page_lines(SUITES, [], runs))
    assert "1 pass, 1 fail, 1 skip" in page
    assert "- Fail: `c`: not explained yet: broke" in page
    assert "- Skip: `b`: the suite's own reason: no key" in page
    assert "- Not run: node and npm are not installed" in page


def test_junit_outcomes() -> None:
    report = (
        '<testsuite><testcase classname="m.T" name="a"/><testcase classname="m.T" name="b"><failure message="x"/>'
        '</testcase><testcase name="c"><skipped message="y"/></testcase></testsuite>'
    )
    assert list(junit_checks(report)) == [Check("T.a", "pass"), Check("T.b", "fail", "x"), Check("c", "skip", "y")]
