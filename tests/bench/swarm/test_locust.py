"""Locust with our locustfile against a server: headless, distributed, with its page, and through the command."""

import argparse
import asyncio
import contextlib
import csv
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from burrstone.bench.peers.servers import free_port
from burrstone.bench.swarm import cli as locust_cli
from harness import Server

LOCUSTFILE = Path(__file__).parents[3] / "bench" / "locustfile.py"
FIXED = ("--workload", "fixed:input=12,output=6", "--rate", "8", "--duration-s", "2")
GENEROUS = ("--ttft-s", "60", "--tpot-s", "60")
# Lateness is of this machine at this moment: no part of the test.
LATE_OR_NOT = (0, 1)


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
    headless = ("--headless", "--only-summary", "--csv", str(folder / "out"), "--json-out", str(folder / "out.json"))
    async with locust(*flags, *headless, folder=folder, command=command) as process:
        code = await process.wait()
    log = (folder / "log").read_text()
    assert code in LATE_OR_NOT and "Traceback" not in log, log
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
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


async def test_several_processes_share_the_schedule_and_their_counts_are_merged(
    scripted: Server, tmp_path: Path
) -> None:
    number = str(free_port())
    port = ("--master-bind-port", number, "--master-port", number)
    alone, apart = tmp_path / "alone", tmp_path / "apart"
    alone.mkdir()
    apart.mkdir()
    one = await finished("--host", scripted.url, *FIXED, *GENEROUS, folder=alone)
    two = await finished("--host", scripted.url, *FIXED, *GENEROUS, "--processes", "2", *port, folder=apart)
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


@contextlib.asynccontextmanager
async def answers_when_all_are_there(expected: int) -> AsyncIterator[str]:
    """The address of a server that answers nobody before so many requests are under way at once."""
    waiting, all_there = 0, asyncio.Event()

    async def chat(request: web.Request) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        if waiting == expected:
            all_there.set()
        await all_there.wait()
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
