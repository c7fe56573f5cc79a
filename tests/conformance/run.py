"""`make conformance`: public suites against burrstone on the real and on the scripted engine; see docs/conformance.md."""

import argparse
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from harness import serving
from suite_checks import ALIASES, RUNNERS, Check
from suite_envs import SuiteUnavailable, prepared
from suite_report import ENGINES, SuiteRun, merge, reason_for, unexplained, write_page

Known = list[dict[str, str]]
# Enough for a small model to end by itself, and a bound on the answers of suites that name none.
_DEFAULT_MAX_TOKENS = 256


def main() -> int:
    table: dict[str, Any] = tomllib.loads((HERE / "suites.toml").read_text())
    known: Known = table.pop("known")
    arguments = parse(list(table))
    if arguments.list:
        for name, suite in table.items():
            print(f"{name:<22} {suite['title']}: {suite['checks']}")
        return 0
    names = [name for name in RUNNERS if name in (arguments.only or RUNNERS)]
    engines = arguments.engine or (["real"] if arguments.url else list(ENGINES))
    runs: list[SuiteRun] = []
    for engine in engines:
        with server(engine, arguments.url) as url:
            runs += [run_suite(name, table[name], engine, url, known) for name in names]
    write_page(table, known, merge(runs))
    if arguments.json:
        print(json.dumps([{"suite": run.suite, "engine": run.engine} | run.numbers() for run in runs]))
    return 1 if any(unexplained(known, run) for run in runs) else 0


def parse(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=names, metavar="SUITE", help="run this suite (repeatable)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only on this engine (repeatable)")
    parser.add_argument("--url", help="a running server's address; none is started. It serves the names of suites.toml")
    parser.add_argument("--list", action="store_true", help="list the suites and stop")
    parser.add_argument("--json", action="store_true", help="counts as JSON on standard output")
    return parser.parse_args()


@contextlib.contextmanager
def server(engine: str, url: str | None) -> Iterator[str]:
    """The address of a server on this engine: the given one, or one of our own for as long as the block runs."""
    if url is not None:
        yield url.rstrip("/")
        return
    flags = ["--served-names", json.dumps(list(ALIASES)), "--limits.default-max-tokens", str(_DEFAULT_MAX_TOKENS)]
    flags += ["--engine.max-model-len", "2048"]
    if engine == "scripted":
        flags += ["--engine.kind", "scripted", "--engine.script", str(HERE / "script.yaml")]
    with tempfile.TemporaryDirectory() as folder:
        say(f"starting the {engine} engine")
        with serving(Path(folder, "log"), *flags) as started:
            say(f"the {engine} engine is ready")
            yield started.url


def run_suite(name: str, pins: dict[str, Any], engine: str, url: str, known: Known) -> SuiteRun:
    """The suite's checks, or why there are none."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    started_s = time.monotonic()
    wanted: dict[str, Any] = {kind: pins[kind] for kind in ("python", "sdist", "npm") if kind in pins}
    checks: list[Check] = []
    unavailable = None
    try:
        env = prepared(name, wanted, lambda step: say(f"{name}: {step}"))
        say(f"{name}: running on the {engine} engine")
        checks = RUNNERS[name](env, url)
    except SuiteUnavailable as error:
        unavailable = str(error)
    except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
        checks = [Check("the suite itself", "fail", f"{type(error).__name__}: {error}")]
    seconds = round(time.monotonic() - started_s)
    run = SuiteRun(name, engine, today, seconds, tuple(checks), unavailable)
    say(f"{name}: {run.counts} in {seconds} s{f' ({unavailable})' if unavailable else ''}")
    for check in checks:
        if check.outcome == "fail":
            say(f"  FAIL {check.name}: {reason_for(known, run, check) or check.detail[:300]}")
    return run


def say(text: str) -> None:
    """Progress, apart from what --json prints."""
    print(f"conformance: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
