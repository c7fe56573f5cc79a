"""Locust with our locustfile against a server: headless, distributed, with its page, and through the command."""

import argparse
import asyncio
import contextlib
import csv
import itertools
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from burrstone.bench.peers.servers import free_port
from burrstone.bench.swarm import cli as locust_cli
from harness import Server

LOCUSTFILE = Path(__file__).parents[3] / "bench" / "locustfile.py"
FIXED = ("--workload", "fixed:input=12,output=6", "--rate", "8", "--duration-s", "2")
GENEROUS = ("--ttft-s", "60", "--tpot-s", "60")


@contextlib.asynccontextmanager
async def locust(
    *flags: str, folder: Path, command: list[str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A locust process of our own, which does not outlive the test."""
    words = [*(command or [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)]), *flags]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(30):
                        await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


async def finished(*flags: str, folder: Path, command: list[str] | None = None) -> dict[str, Any]:
    """The summary of a headless run, which ends by itself."""
    async with locust(*flags, *headless(folder), folder=folder, command=command) as process:
        code = await process.wait()
    return summary(code, folder)


def headless(folder: Path) -> list[str]:
    return [
        "--headless",
        "--only-summary",
        "--csv",
        str(folder / "out"),
        "--json-out",
        str(folder / "made" / "out.json"),
    ]


def summary(code: int, folder: Path) -> dict[str, Any]:
    """Of a run that has ended so."""
    log = (folder / "log").read_text()
    assert "Traceback" not in log, log
    found: dict[str, Any] = json.loads((folder / "made" / "out.json").read_text())
    # Whether it was late is of this machine at this moment: no part of a test, but said it must be.
    assert found["client_was_bottleneck"] == ("sent late" in (found["warning"] or "")), log
    assert code == (1 if found["warning"] is not None or found["failed"] else 0), log
    return found


def rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(type, name) -> row of locust's own CSV."""
    with (folder / "out_stats.csv").open() as file:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}


def agree(found: dict[str, Any], folder: Path) -> None:
    """Our summary and locust's CSV tell of the same requests."""
    assert found["offered"] == found["completed"] > 5 and found["failed"] == 0
    table, counts = rows(folder), dict.fromkeys(("TTFT", "E2E", "TOKEN", "GOOD"), 0)
    for kind in counts:
        counts[kind] = sum(int(row["Request Count"]) for key, row in table.items() if key[0] == kind)
    assert counts["TTFT"] == counts["E2E"] == found["completed"]
    assert counts["TOKEN"] == found["total_output_tokens"] > found["completed"]
    assert counts["GOOD"] == round(found["slo_attainment"] * found["offered"])
    assert any(kind == "ITL" for kind, _ in table)
    assert int(table["", "Aggregated"]["Request Count"]) == found["offered"]


@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
async def test_an_open_loop_over_both_wires(scripted: Server, grpc: bool, tmp_path: Path) -> None:
    where = ("--grpc", "--host", scripted.grpc_address) if grpc else ("--host", scripted.url)
    found = await finished(*where, *FIXED, *GENEROUS, folder=tmp_path)
    agree(found, tmp_path)
    assert found["slo_attainment"] == 1.0 and found["median_ttft_ms"] <= found["p99_ttft_ms"] <= found["p99_e2el_ms"]
    assert found["setting"]["workload"] == FIXED[1] and set(found["tenants"]) == {"0"}


async def test_tenants_are_told_apart(scripted: Server, tmp_path: Path) -> None:
    flags = ("--workload", "flood:victim=0.4", "--rate", "10", "--duration-s", "2", "--num-requests", "12")
    found = await finished("--host", scripted.url, *flags, folder=tmp_path)
    assert set(found["tenants"]) == {"victim", "flood"}
    assert sum(tenant["offered"] for tenant in found["tenants"].values()) == found["offered"]
    assert {name for kind, name in rows(tmp_path) if kind == "E2E"} == {"victim", "flood"}


async def test_a_closed_loop_and_programs(scripted: Server, tmp_path: Path) -> None:
    flags = ("--mode", "closed", "--users", "3", "--spawn-rate", "10", "--workload", "agents:turns=2,tool_s=0.1")
    found = await finished("--host", scripted.url, *flags, "--duration-s", "2", folder=tmp_path)
    assert found["offered"] == found["completed"] + found["failed"] > 3


def programs(folder: Path, count: int, turns: int, *, every_ms: int, tool_ms: int) -> str:
    """A workload of so many programs of so many calls."""
    rows = [
        {"t_ms": every_ms * program, "session": str(program), "turn": turn, "input_len": 9 + 9 * turn, "output_len": 2}
        | ({"parent": turns * program + turn - 1, "tool_ms": tool_ms} if turn else {})
        for program in range(count)
        for turn in range(turns)
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"trace:{folder}/trace.jsonl"


async def test_a_program_s_pauses_are_no_part_of_its_latency(tmp_path: Path) -> None:
    asked: dict[str, list[float]] = {}

    async def note(request: web.Request) -> None:
        asked.setdefault(request.headers["x-session-id"], []).append(time.monotonic())

    workload = programs(tmp_path, 4, 3, every_ms=0, tool_ms=700)
    flags = ("--mode", "closed", "--users", "2", "--model", "any", "--workload", workload)
    async with chat_server(note) as url:
        host = url.replace("://", "://somebody:password@")
        found = await finished("--host", host, *flags, "--num-requests", "12", "--text-seed", "5", folder=tmp_path)
    assert (found["offered"], found["completed"]) == (12, 12)
    assert set(asked) == {f"bench-5-{program}" for program in range(4)}
    for times_s in asked.values():
        assert all(later - earlier >= 0.7 for earlier, later in itertools.pairwise(times_s))
    assert found["median_ttft_ms"] < 700 and found["setting"]["text_seed"] == 5
    assert found["setting"]["url"] == url and "password" not in (tmp_path / "made" / "out.json").read_text()


async def test_who_leaves_after_a_spike_ends_his_request(scripted: Server, tmp_path: Path) -> None:
    flags = ("--mode", "closed", "--users", "4", "--shape", "spike", *FIXED[:-1], "6")
    found = await finished("--host", scripted.url, *flags, folder=tmp_path)
    log = (tmp_path / "log").read_text()
    assert "Ramping to 16 users" in log and log.count("Ramping to 4 users") == 2
    assert found["offered"] == found["completed"] > 16 and found["errors"] == {}


async def test_a_stop_waits_for_nobody(tmp_path: Path) -> None:
    number = str(free_port())
    flags = ("--mode", "closed", "--users", "3", "--model", "any", "-t", "3", *FIXED[:-1], "60")
    apart = ("--processes", "1", "--master-bind-port", number, "--master-port", number)
    async with answers_when_all_are_there(4) as url, asyncio.timeout(60):
        found = await finished("--host", url, *flags, *apart, folder=tmp_path)
    assert found["offered"] == 3 and found["errors"] == {"the run was stopped before its end": 3}


@pytest.mark.parametrize("after_s", [0.0, 3.5], ids=["before-its-first-report", "later"])
async def test_what_a_killed_worker_held_counts_as_failed(scripted: Server, after_s: float, tmp_path: Path) -> None:
    number = str(free_port())
    flags = ("--host", scripted.url, "--processes", "2", "--master-bind-port", number, "--master-port", number)
    workload = ("--workload", programs(tmp_path, 15, 2, every_ms=500, tool_ms=200))
    async with locust(*flags, *workload, *headless(tmp_path), folder=tmp_path) as process:
        log = ""
        while not re.search("All users spawned|Spawning is complete", log):
            await asyncio.sleep(0.1)
            log = (tmp_path / "log").read_text()
        await asyncio.sleep(after_s)
        psutil.Process(process.pid).children()[0].kill()
        async with asyncio.timeout(60):
            code = await process.wait()
    found = summary(code, tmp_path)
    assert found["offered"] == 30 and 0 < found["failed"] < 30 and code == 1
    assert found["errors"] == {"its worker was lost": found["failed"]} and "lost before the end" in found["warning"]


async def test_a_summary_that_cannot_be_written_is_printed(scripted: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ("--headless", "--only-summary", "--num-requests", "6", "--json-out", str(tmp_path / "file" / "out.json"))
    async with locust("--host", scripted.url, *FIXED, *flags, folder=tmp_path) as process:
        assert await process.wait() == 2
    log = (tmp_path / "log").read_text()
    assert "cannot be written" in log and '"offered": 6' in log and "Traceback" not in log, log


async def test_several_processes_share_the_schedule_and_their_counts_are_merged(
    scripted: Server, tmp_path: Path
) -> None:
    number = str(free_port())
    port = ("--master-bind-port", number, "--master-port", number)
    alone, apart = tmp_path / "alone", tmp_path / "apart"
    alone.mkdir()
    apart.mkdir()
    flags = ("--host", scripted.url, *FIXED, *GENEROUS, "--text-seed", "1")
    one = await finished(*flags, folder=alone)
    two = await finished(*flags, "--processes", "2", *port, folder=apart)
    agree(two, apart)
    assert len(two["workers"]) == 2 and len(one["workers"]) == 1
    # The same requests with the same lengths, whoever sends them.
    for name in ("offered", "completed", "total_input_tokens", "total_output_tokens"):
        assert one[name] == two[name]


async def test_the_page_has_the_figures_while_the_run_goes_on(scripted: Server, tmp_path: Path) -> None:
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    flags = ("--host", scripted.url, *FIXED[:-1], "60", "--web-host", "127.0.0.1", "--web-port", str(port))
    async with locust(*flags, folder=tmp_path), aiohttp.ClientSession() as session:

        async def get(path: str, method: str = "GET") -> str:
            async with session.request(method, page + path) as reply:
                assert reply.status == 200
                return await reply.text()

        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                index = await get("/")
                break
            await asyncio.sleep(0.2)
        assert '"Tokens"' in index and "tokens.js" in index and "workload" in index
        assert "setInterval" in await get("/tokens.js")
        # A form posts texts, and empty ones for what is not given.
        form = {"user_count": "1", "spawn_rate": "1", "host": scripted.url, "rate": "20", "ttft_s": "", "tpot_s": "9"}
        for _ in range(2):
            async with session.post(f"{page}/swarm", data=form) as reply:
                assert (await reply.json())["success"]
            found: dict[str, Any] = {"completed": 0, "history": []}
            while found["completed"] < 3 or not found["history"]:
                await asyncio.sleep(0.2)
                found = json.loads(await get("/tokens.json"))
            assert found["warning"] is None or "late" in found["warning"]
            stats = json.loads(await get("/stats/requests"))
            while not stats["extended_stats"][0]["data"]:
                await asyncio.sleep(0.5)
                stats = json.loads(await get("/stats/requests"))
            assert stats["extended_stats"][0]["data"][0]["tenant"] == "0"
            await get("/stop", "POST")
            found = json.loads(await get("/tokens.json"))
            assert found["offered"] == found["completed"] + found["failed"]


async def test_the_page_keeps_keys_to_itself_and_each_start_has_texts_of_its_own(tmp_path: Path) -> None:
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    asked: asyncio.Queue[str] = asyncio.Queue()
    keys: set[str] = set()

    async def note(request: web.Request) -> None:
        keys.add(request.headers.get("Authorization", ""))
        asked.put_nowait((await request.json())["messages"][0]["content"])

    flags = ("--web-host", "127.0.0.1", "--web-port", str(port), "--model", "any", "--key", "hush-hush", *FIXED)
    async with (
        chat_server(note) as url,
        locust("--host", url, *flags, folder=tmp_path),
        aiohttp.ClientSession(raise_for_status=True) as session,
    ):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get(page) as reply:
                    index = await reply.text()
                break
            await asyncio.sleep(0.2)
        assert '"key"' in index and "hush-hush" not in index
        starts = []
        for _ in range(2):
            async with session.post(f"{page}/swarm", data={"user_count": "1", "spawn_rate": "1", "key": ""}):
                starts.append([await asked.get() for _ in range(5)])
            async with session.post(f"{page}/stop"):
                pass
            while not asked.empty():
                asked.get_nowait()
    assert keys == {"Bearer hush-hush"} and not set(starts[0]) & set(starts[1])


@contextlib.asynccontextmanager
async def chat_server(before: Callable[[web.Request], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of a server that answers in one piece, after `before`."""

    async def chat(request: web.Request) -> web.StreamResponse:
        await before(request)
        reply = web.StreamResponse()
        await reply.prepare(request)
        usage = {"completion_tokens": 2, "prompt_tokens": 3}
        for event in ({"choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": usage}):
            await reply.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await reply.write(b"data: [DONE]\n\n")
        return reply

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def answers_when_all_are_there(expected: int) -> AsyncIterator[str]:
    """The address of a server that answers nobody before so many requests are under way at once."""
    waiting, all_there = 0, asyncio.Event()

    async def wait(_: web.Request) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == expected:
            all_there.set()
        await all_there.wait()

    async with chat_server(wait) as url:
        yield url
        all_there.set()


async def test_a_stalled_server_does_not_slow_the_schedule(tmp_path: Path) -> None:
    """It answers only when all are there: a client that waits for answers would wait for ever."""
    flags = (*FIXED, "--model", "any", "--num-requests", "9")
    async with answers_when_all_are_there(9) as url:
        found = await finished("--host", url, *flags, folder=tmp_path)
    assert (found["offered"], found["completed"]) == (9, 9)


async def test_refusals_count_as_offered_and_bad(scripted: Server, tmp_path: Path) -> None:
    found = await finished("--host", scripted.url, *FIXED, "--model", "nobody", folder=tmp_path)
    assert found["offered"] == found["failed"] > 5 and found["slo_attainment"] == 0.0
    assert [error[:3] for error in found["errors"]] == ["404"]
    assert int(rows(tmp_path)["E2E", "0"]["Failure Count"]) == found["failed"]


async def test_what_cannot_be_offered_is_refused(tmp_path: Path) -> None:
    async with locust("--headless", "--workload", "chatt", folder=tmp_path) as process:
        assert await process.wait() == 2
    assert "did you mean chat?" in (tmp_path / "log").read_text()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    locust_cli.add_parser(parser.add_subparsers())
    return parser.parse_args(["locust", *words])


async def test_the_command_runs_locust(scripted: Server, tmp_path: Path) -> None:
    arguments = parsed("--url", scripted.url, *FIXED, "--num-requests", "6", "--headless")
    found = await finished(folder=tmp_path, command=locust_cli.command_of(arguments))
    assert found["offered"] == found["completed"] == 6


def test_the_command_hands_on_what_was_given() -> None:
    command = locust_cli.command_of(parsed("--grpc", "--key", "a", "--key", "b", "--ttft-s", "2", "--", "--csv", "x"))
    assert command[5:] == [
        *("--host", "127.0.0.1:9000", "--grpc", "--key", "a", "--key", "b"),
        *("--ttft-s", "2.0", "--csv", "x"),
    ]
