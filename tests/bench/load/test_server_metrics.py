"""What a server says of itself is seen once a second, and its absence told; the load is not held up by it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from burrstone.bench.load import server_metrics
from burrstone.bench.load.server_metrics import ServerMetrics, read_page, watching
from burrstone.serving.cli.main import main
from harness import Server

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a {strange} name"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.7
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3",model_name="m"} 4.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} QUEUE_S
vllm:request_queue_time_seconds_count{engine="0",model_name="m"} QUEUED
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 400.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 100.0
"""


def page(queue_s: float = 1.0, queued: int = 10) -> str:
    return PAGE.replace("QUEUE_S", str(queue_s)).replace("QUEUED", str(queued))


def test_a_page_is_read_over_all_engines() -> None:
    assert read_page(page()) == {
        "running": 5.0,
        "waiting": 7.0,
        "kv_share": pytest.approx(0.6),
        "output_tokens": 1.5e6,
        "queue_s": 1.0,
        "queued": 10.0,
        "prefix_asked_tokens": 400.0,
        "prefix_hit_tokens": 100.0,
    }
    assert read_page("burrstone_generations_running 4.0\n") == {"generations": 4.0}
    assert read_page("<html>no metrics</html>") == {}


@contextlib.asynccontextmanager
async def serving(*pages: str | int) -> AsyncIterator[str]:
    """A server that answers /metrics with these texts or statuses in turn, and with the last one from then on."""
    left = list(pages)

    async def metrics(request: web.Request) -> web.Response:
        answer = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(text=answer) if isinstance(answer, str) else web.Response(status=answer)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        yield str(server.make_url(""))


async def watched(*pages: str | int, for_s: float = 0.3) -> ServerMetrics:
    async with serving(*pages) as url, watching(url, None, asyncio.get_running_loop().time) as seen:
        await asyncio.sleep(for_s)
    return seen


async def test_a_run_has_its_timeline_and_what_its_counters_rose_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "_EVERY_S", 0.05)
    found = (await watched(page(1.0, 10), 503, page(3.0, 20))).figures()
    timeline = found["timeline"]
    # The sample that failed is a gap, and what was there before the run is not the run's.
    assert len(timeline["at_s"]) >= 3 and timeline["at_s"] == sorted(timeline["at_s"])
    assert all(len(values) == len(timeline["at_s"]) for values in timeline.values())
    assert set(timeline["running"]) == {5.0} and timeline["queued"][0] == 10.0 and timeline["queued"][-1] == 20.0
    assert found["mean_queue_ms"] == pytest.approx(200.0)
    assert found["server_prefix_hit_share"] is None


async def test_a_server_started_anew_has_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "_EVERY_S", 0.05)
    assert (await watched(page(9.0, 90), page(1.0, 100))).figures()["mean_queue_ms"] is None


@pytest.mark.parametrize(
    ("answer", "told"), [(404, "/metrics: 404"), ("hello", "none of vLLM's or burrstone's metrics")]
)
async def test_what_is_missing_is_told(answer: str | int, told: str) -> None:
    found = (await watched(answer)).figures()
    assert found.keys() == {"timeline_missing"} and told in found["timeline_missing"]


@pytest.mark.parametrize("grpc", [False, True])
def test_a_run_writes_what_it_saw(scripted: Server, grpc: bool, tmp_path: Path) -> None:
    where = ["--grpc", "--url", scripted.grpc_address] if grpc else ["--url", scripted.url]
    load = ["--workload", "fixed:input=8,output=4", "--rate", "20", "--duration-s", "1"]
    # Lateness is of this machine at this moment.
    assert main(["bench", "run", *where, *load, "--key", "secret", "--json", str(tmp_path / "out.json")]) in (0, 1)
    found = json.loads((tmp_path / "out.json").read_text())
    if grpc:
        assert "timeline" not in found and found["timeline_missing"] == "gRPC has no page of metrics"
    else:
        assert found["timeline"]["at_s"][0] < 0 < found["timeline"]["at_s"][-1]
        assert len(found["timeline"]["generations"]) == len(found["timeline"]["at_s"]) >= 2
    command = found["setting"]["command"]
    assert command.startswith("burrstone bench run ") and "--key KEY" in command and "secret" not in command
    assert len(found["intended_times"]) == found["offered"]


@pytest.mark.engine
def test_the_engine_s_own_figures(engine: Server, tmp_path: Path) -> None:
    load = ["--workload", "shared-prefix", "--concurrency", "4", "--num-requests", "8", "--seed", "5"]
    assert main(["bench", "run", "--url", engine.url, *load, "--json", str(tmp_path / "out.json")]) in (0, 1)
    found = json.loads((tmp_path / "out.json").read_text())
    timeline = found["timeline"]
    assert set(server_metrics.SERIES.values()) - {"gate_waiting"} <= timeline.keys()
    assert timeline["output_tokens"][-1] - timeline["output_tokens"][0] == found["total_output_tokens"]
    assert timeline["queued"][-1] - timeline["queued"][0] == found["completed"] == 8
    assert found["mean_queue_ms"] >= 0 and 0 < found["server_prefix_hit_share"] < 1
