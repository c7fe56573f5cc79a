"""Clients that leave in the middle, or stay and never read: what they held is given back."""

import asyncio
import socket

import pytest
import uvicorn
from leaving import WAYS, clients
from starlette.types import Receive, Scope, Send
from waiting import wait_until
from wire import generations, greedy_text, metric

from burrstone.serving.edges.http_server import bind, bounded_protocol
from harness import Server


@pytest.mark.engine
def test_clients_that_leave_free_the_engine(engine: Server) -> None:
    """One of each way to leave: running and waiting requests go to zero, the KV cache to where it was."""
    expected = greedy_text(engine)
    wait_until(lambda: generations(engine) == 0)
    kv_before = metric(engine, "vllm:kv_cache_usage_perc")
    leaves = clients(engine, len(WAYS))
    wait_until(lambda: metric(engine, "vllm:num_requests_running") >= len(WAYS) // 2)
    assert metric(engine, "vllm:kv_cache_usage_perc") > kv_before
    for leave in leaves:
        leave()
    wait_until(lambda: generations(engine) == 0)
    wait_until(lambda: metric(engine, "vllm:kv_cache_usage_perc") <= kv_before)
    assert greedy_text(engine) == expected


async def test_an_answer_that_nobody_reads_is_cut() -> None:
    """Every buffer on the way is full, so the connection would not end by itself, nor by being closed."""
    left = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not left.is_set():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            if await _gone(receive):
                left.set()

    protocol = bounded_protocol(max_header_bytes=1000, max_connections=10, arrival_timeout_s=30, answer_timeout_s=0.5)
    server = uvicorn.Server(uvicorn.Config(endless, http=protocol, lifespan="off", log_config=None, loop="none"))
    listening = bind("127.0.0.1", 0)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    with socket.create_connection(listening.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(30):
            await left.wait()
    server.should_exit = True
    await task


async def _gone(receive: Receive) -> bool:
    """Whether the connection has ended; a request that is still open has nothing more to say."""
    try:
        async with asyncio.timeout(0.001):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True
