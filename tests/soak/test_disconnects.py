"""A hundred clients that leave in the middle of their answers, all at once."""

import time

import pytest
from leaving import clients
from report import Report
from waiting import wait_until
from wire import generations, greedy_text, metric

from harness import Server

pytestmark = pytest.mark.soak
CLIENTS = 100
ROUNDS = 3


def test_a_hundred_clients_leave(engine: Server, report: Report) -> None:
    expected = greedy_text(engine)
    wait_until(lambda: generations(engine) == 0)
    kv_before = metric(engine, "vllm:kv_cache_usage_perc")
    idle_after_s, kv_after_s, running, kv_peak = [], [], [], []
    for _ in range(ROUNDS):
        leaves = clients(engine, CLIENTS)
        running.append(int(metric(engine, "vllm:num_requests_running")))
        kv_peak.append(round(metric(engine, "vllm:kv_cache_usage_perc"), 4))
        for leave in leaves:
            leave()
        left_s = time.monotonic()
        wait_until(lambda: generations(engine) == 0)
        idle_after_s.append(round(time.monotonic() - left_s, 2))
        wait_until(lambda: metric(engine, "vllm:kv_cache_usage_perc") <= kv_before)
        kv_after_s.append(round(time.monotonic() - left_s, 2))
    figures = {
        "clients": CLIENTS,
        "running_when_they_left": running,
        "kv_usage_when_they_left": kv_peak,
        "kv_usage_before_and_after": kv_before,
        "idle_after_s": idle_after_s,
        "kv_back_after_s": kv_after_s,
    }
    report.record("disconnects", figures)
    assert all(running), "nobody left in the middle"
    assert greedy_text(engine) == expected
