"""A policy in the real engine: the same answers, fair turns, counters at /metrics, and a log that can be decided again."""

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from burrstone.batching.core.step_log import read_log
from burrstone.batching.sim.replay import replay
from harness import EXACT_FLAGS, MODEL, Server, serving

pytestmark = pytest.mark.engine
ALICE, BOB = "alices-key-of-some-length", "bobs-key-of-some-length"
POLICY = "vtc > slo > program"
END_OF_TURN = "2"  # the token's id
TOOL = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}
PROMPTS = [
    "The capital of France is",
    "One, two, three,",
    "A mill grinds",
    "Once upon a time",
    "Water boils at",
    "def f(",
]


@pytest.fixture(scope="module")
def step_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps") / "log.jsonl"


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory, step_log: Path) -> Iterator[Server]:
    """The exact engine's twin, with a policy, four seats, and two tenants."""
    flags = [*EXACT_FLAGS, "--engine.max-num-seqs", "4", "--observability.metrics-public", "true"]
    flags += ["--scheduler.policy", POLICY, "--scheduler.step-log", str(step_log)]
    keys = {"BURRSTONE_API_KEYS": f"alice:{ALICE},bob:{BOB}"}
    with serving(tmp_path_factory.mktemp("scheduled") / "log", *flags, environ=keys) as server:
        yield server


def complete(server: Server, prompt: str, max_tokens: int, key: str | None = None) -> str:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    status, reply = server.request("POST", "/v1/completions", body, headers)
    assert status == 200, reply
    return str(reply["choices"][0]["text"])


def metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        text: str = reply.read().decode()
    return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)))


def test_answers_are_those_of_the_stock_engine(exact_engine: Server, scheduled: Server) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        ours = pool.map(lambda prompt: complete(scheduled, prompt, 24, ALICE), PROMPTS)
        assert list(ours) == [complete(exact_engine, prompt, 24) for prompt in PROMPTS]


def test_a_flood_of_one_tenant_does_not_hold_up_another(scheduled: Server) -> None:
    ended: list[str] = []
    lock = threading.Lock()

    def ask(key: str, number: int) -> None:
        complete(scheduled, f"{number} red mills turn", 48, key)
        with lock:
            ended.append(key)

    with ThreadPoolExecutor(25) as pool:
        flood = [pool.submit(ask, ALICE, number) for number in range(24)]
        wait_until(lambda: metric(scheduled, "vllm:num_requests_waiting") >= 12)
        before = len(ended)
        asked: Any = pool.submit(ask, BOB, 99)
        for one in (*flood, asked):
            one.result()
    # Bob waits for a seat and for his own tokens, with three of Alice's beside him; in order of arrival he would be last.
    assert ended.index(BOB) - before <= 8


def test_a_program_that_is_answered_without_a_tool_call_keeps_no_cache(scheduled: Server) -> None:
    programs = [f"job{number}" for number in range(5)]

    def ask(program: str, *, stream: bool = False, **asked: Any) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "logit_bias": {END_OF_TURN: 100}}
        headers = {"Authorization": f"Bearer {BOB}", "x-program-id": program}
        if stream:
            answers = [data for _, data in scheduled.stream("/v1/chat/completions", body | asked, headers)[:-1]]
        else:
            answers = [scheduled.request("POST", "/v1/chat/completions", body | asked, headers)[1]]
        assert answers[-1]["choices"][0]["finish_reason"] == "stop", answers

    def kept_blocks() -> float:
        complete(scheduled, "One more", 2, ALICE)  # counters are told with a step
        return metric(scheduled, "burrstone_scheduler_kept_blocks")

    for program in programs:
        ask(program)
    assert kept_blocks() == 0  # nothing is known of returns yet
    time.sleep(5)
    for program in programs:
        ask(program)
    assert kept_blocks() > 0
    for number, program in enumerate(programs):
        ask(program, stream=number % 2 == 0, tools=[TOOL])
    assert kept_blocks() == 0


def test_counters_come_out_at_metrics(scheduled: Server) -> None:
    assert metric(scheduled, "burrstone_scheduler_fallback_total") == 0
    assert metric(scheduled, "burrstone_scheduler_hook_seconds_count") > 20
    assert metric(scheduled, "burrstone_scheduler_info") == 1


def test_the_simulator_decides_every_step_as_the_engine_did(scheduled: Server, step_log: Path) -> None:
    complete(scheduled, "The last one", 2, BOB)
    # An engine that has nothing to do keeps no line back.
    wait_until(lambda: metric(scheduled, "burrstone_generations_running") == 0)
    lines = step_log.read_text().splitlines()
    header, records = read_log(lines)
    assert header.policy == POLICY and header.max_num_seqs == 4
    assert len(list(records)) > 50
    assert replay(lines).difference is None
