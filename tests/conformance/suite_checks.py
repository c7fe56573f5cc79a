"""How each suite is run against a server, and how its own report becomes a list of checks."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from suite_envs import DRIVERS, SuiteEnv

MODEL = "smollm2-135m-instruct"
# The OpenAI SDK's tests ask for these.
ALIASES = (MODEL, "default", "gpt-6-astra", "gpt-3.5-turbo-instruct")
Outcome = Literal["pass", "fail", "skip"]
_TIMEOUT_S = 1800
_SDIST_TESTS = ("test_models.py", "test_completions.py", "chat/test_completions.py")
_SDIST_SELECTION = (
    "not all_params and not path_params and not delete and (test_models or "
    "(create and overload)) and not stored and not update"
)


@dataclass(frozen=True)
class Check:
    """One check of a suite, as the suite judged it."""

    name: str
    outcome: Outcome
    detail: str = ""


def openai_sdk(env: SuiteEnv, url: str) -> list[Check]:
    [root] = (env.folder / "sdist").iterdir()
    files = [str(root / "tests" / "api_resources" / name) for name in _SDIST_TESTS]
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(root), "-k", _SDIST_SELECTION]
    return _pytest(env, [*options, *files], {"TEST_API_BASE_URL": f"{url}/v1"})


def langchain(env: SuiteEnv, url: str) -> list[Check]:
    options = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session", "-p", "no:cacheprovider"]
    case = shutil.copy(DRIVERS / "langchain_case.py", env.folder)
    return _pytest(env, [*options, str(case)], {"BASE_URL": f"{url}/v1", "MODEL": MODEL})


def llm_comply(api_format: str) -> Callable[[SuiteEnv, str], list[Check]]:
    def run(env: SuiteEnv, url: str) -> list[Check]:
        command = [env.program("llm-comply"), "--format", api_format, "-u", f"{url}/v1", "-k", "none", "-m", MODEL]
        report = json.loads(env.run([*command, "--json"], timeout_s=_TIMEOUT_S))
        return [
            Check(result["id"], _outcome(result["status"]), "; ".join(result.get("errors") or []))
            for result in report["results"]
        ]

    return run


def schemathesis(env: SuiteEnv, url: str) -> list[Check]:
    junit = env.folder / "junit.xml"
    command = [env.program("schemathesis"), "run", f"{url}/openapi.json", "--checks", "not_a_server_error"]
    command += ["--phases", "fuzzing", "--max-examples", "25", "--seed", "1", "--request-timeout", "60"]
    command += ["--continue-on-failure", "--report", "junit", "--report-junit-path", str(junit), "--no-color"]
    env.run(command, timeout_s=_TIMEOUT_S)
    return list(junit_checks(junit.read_text()))


def canitoolcall(env: SuiteEnv, url: str) -> list[Check]:
    report_file = env.folder / "probe.json"
    command = [env.program("canitoolcall"), "probe", "--base-url", f"{url}/v1", "--model", MODEL]
    env.run([*command, "--concurrency", "2", "--json", str(report_file)], timeout_s=_TIMEOUT_S)
    return [
        Check(
            f"{found['scenario_id']} {'streamed' if found['stream'] else 'whole'} ({found['check']})",
            _outcome(found["status"]),
            found["detail"],
        )
        for found in json.loads(report_file.read_text())["outcomes"]
    ]


def matrix(driver: str) -> Callable[[SuiteEnv, str], list[Check]]:
    """A driver of ours that prints one line of JSON for each check."""

    def run(env: SuiteEnv, url: str) -> list[Check]:
        command = [env.program("python"), str(DRIVERS / driver), f"{url}/v1", MODEL]
        return _lines(env.run(command, timeout_s=_TIMEOUT_S, environ={"OPENAI_API_KEY": "none"}))

    return run


def vercel_ai(env: SuiteEnv, url: str) -> list[Check]:
    # A module finds its packages from where it lies.
    script = shutil.copy(DRIVERS / "vercel.mjs", env.folder)
    return _lines(env.run(["node", str(script), f"{url}/v1", MODEL], timeout_s=_TIMEOUT_S))


RUNNERS: dict[str, Callable[[SuiteEnv, str], list[Check]]] = {
    "llm-comply-chat": llm_comply("openai-chat"),
    "llm-comply-responses": llm_comply("open-responses"),
    "llm-comply-anthropic": llm_comply("anthropic"),
    "openai-sdk": openai_sdk,
    "langchain": langchain,
    "agents": matrix("agents_matrix.py"),
    "instructor": matrix("instructor_matrix.py"),
    "vercel-ai": vercel_ai,
    "canitoolcall": canitoolcall,
    "schemathesis": schemathesis,
}


def _pytest(env: SuiteEnv, arguments: list[str], environ: dict[str, str]) -> list[Check]:
    junit = env.folder / "junit.xml"
    junit.unlink(missing_ok=True)
    command = [env.program("python"), "-m", "pytest", "-q", f"--junitxml={junit}", *arguments]
    said = env.run(command, timeout_s=_TIMEOUT_S, environ=environ)
    if not junit.is_file():
        raise RuntimeError(f"pytest wrote no report: {said[-2000:]}")
    return list(junit_checks(junit.read_text()))


def junit_checks(text: str) -> Iterable[Check]:
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = ".".join(filter(None, [(case.get("classname") or "").rpartition(".")[2], case.get("name")]))
        problems = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if problems:
            detail = problems[0].get("message") or (problems[0].text or "")
            yield Check(name, "fail", " ".join(detail.split())[:500])
        elif skipped is not None:
            # An expected failure is reported as a skip; either way the check did not count.
            yield Check(name, "skip", (skipped.get("message") or "")[:300])
        else:
            yield Check(name, "pass")


def _lines(text: str) -> list[Check]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [Check(line["name"], _outcome(line["outcome"]), line["detail"]) for line in lines]


def _outcome(word: str) -> Outcome:
    if re.match("pass|soft_pass", word):
        return "pass"
    return "skip" if word.startswith("skip") else "fail"
