"""What a wire makes of what servers send: ours over both, and others' odd but lawful streams."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from burrstone.bench.load.record import Record
from burrstone.bench.load.wires import GrpcWire, HttpWire, Wire
from burrstone.bench.peers.table import MODEL
from harness import Server

CHAT = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "say exactly: hello world"}]}
USAGE = {"completion_tokens": 3, "prompt_tokens": 11, "prompt_tokens_details": {"cached_tokens": 8}}
SAYS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "one "}}], "usage": None},
    {"choices": [{"delta": {"content": "two"}}], "usage": None},
    {"choices": [], "usage": USAGE},
]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def events(*objects: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in objects)


WHOLE = events(*SAYS) + b"data: [DONE]\n\n"


async def asked(wire: Wire, body: dict[str, Any] = CHAT, headers: dict[str, str] | None = None) -> tuple[Record, str]:
    record = Record(0, 0.0)
    text = await wire.ask(body, record, headers or {}, keep_text=True)
    await wire.close()
    return record, text


def clock() -> float:
    return asyncio.get_running_loop().time()


async def ask_a_server_that_says(*pieces: bytes, status: int = 200) -> tuple[Record, str]:
    async def handle(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(status=status)
        await reply.prepare(request)
        for piece in pieces:
            await reply.write(piece)
            await asyncio.sleep(0.002)
        return reply

    app = web.Application()
    app.router.add_post("/base/v1/chat/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        return await asked(HttpWire(f"http://127.0.0.1:{port}/base/v1/", "chat", clock))
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("wire", ["http", "grpc"])
@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_our_own_server(scripted: Server, wire: str, api: str) -> None:
    made = HttpWire(scripted.url, api, clock) if wire == "http" else GrpcWire(scripted.grpc_address, api, clock)
    body = CHAT if api == "chat" else {"model": MODEL, "max_tokens": 16, "prompt": "say exactly: hello world"}
    record, text = await asked(made, body)
    assert record.error is None and "hello world" in text.lower()
    assert record.output_tokens > 2 and (record.prompt_tokens or 0) > 2
    assert record.sent_s < record.pieces_s[0] <= record.pieces_s[-1] <= record.ended_s


@pytest.mark.parametrize(
    "pieces",
    [
        (WHOLE,),
        tuple(WHOLE[place : place + 1] for place in range(len(WHOLE))),
        (WHOLE.replace(b"\n", b"\r\n"),),
        (b": ping\n\n" + WHOLE[:60], WHOLE[60:90], WHOLE[90:]),
    ],
    ids=["at once", "cut up", "carriage returns", "comments"],
)
async def test_however_the_bytes_come(pieces: tuple[bytes, ...]) -> None:
    record, text = await ask_a_server_that_says(*pieces)
    assert (record.error, text) == (None, "one two")
    assert len(record.pieces_s) == 2  # the first event only says who speaks
    assert (record.output_tokens, record.prompt_tokens, record.cached_tokens) == (3, 11, 8)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((events(*SAYS[:3]),), "the stream ended without its usage, its end"),
        ((events(*SAYS),), "the stream ended without its end"),
        ((events(SAYS[0], SAYS[3]) + b"data: [DONE]\n\n",), "the stream ended without text"),
        ((events(*SAYS[:2], {"error": {"code": "engine_died", "message": "x"}}),), "in the stream: engine_died"),
        ((), "the stream ended without text, its usage, its end"),
    ],
)
async def test_a_stream_that_does_not_end_well_is_no_answer(pieces: tuple[bytes, ...], error: str) -> None:
    record, _ = await ask_a_server_that_says(*pieces)
    assert record.error == error and not record.good


async def test_a_refusal_is_told_by_its_code() -> None:
    record, _ = await ask_a_server_that_says(b'{"error": {"message": "no", "code": "queue_full"}}', status=429)
    assert record.error == "429 queue_full"
    record, _ = await ask_a_server_that_says(b"<html>bad gateway", status=502)
    assert record.error == "502 <html>bad gateway"


async def test_a_server_that_is_not_there() -> None:
    record, _ = await asked(HttpWire("http://127.0.0.1:9", "chat", clock))
    assert (record.error or "").startswith("ClientConnectorError")
    record, _ = await asked(GrpcWire("127.0.0.1:9", "chat", clock))
    assert (record.error or "").startswith("UNAVAILABLE")
    assert record.ended_s >= record.sent_s


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_a_request_that_our_server_refuses(scripted: Server, wire: str) -> None:
    made = HttpWire(scripted.url, "chat", clock) if wire == "http" else GrpcWire(scripted.grpc_address, "chat", clock)
    record, _ = await asked(made, CHAT | {"model": "nobody"})
    assert (record.error or "").startswith("404" if wire == "http" else "NOT_FOUND")


@pytest.mark.parametrize("answers", [1, 2])
async def test_a_connection_that_closes_in_silence_is_replaced_but_a_server_that_dies_has_failed(answers: int) -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"include_usage")
        if connections <= answers:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(WHOLE) + WHOLE)
            await writer.drain()
            # Half a connection: the client finds out when it sends its next request.
            await reader.read(1)
        writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        wire = HttpWire(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "chat", clock)
        records = [Record(0, 0.0), Record(1, 0.0)]
        for record in records:
            await wire.ask(CHAT, record, {}, keep_text=True)
        await wire.close()
    assert records[0].error is None and connections == 2
    assert (records[1].error is None) == (answers == 2)
