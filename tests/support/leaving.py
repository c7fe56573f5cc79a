"""Clients that leave in the middle of an answer, each in its own way."""

import json
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any, Literal

import grpc
from google.protobuf.message import Message

from burrstone.openai.v1 import chat_pb2, completions_pb2, responses_pb2
from burrstone.serving.edges.proto_convert import from_json
from harness import MODEL, Server

Leave = Callable[[], None]
_PROMPT = "Count for ever, and never stop: one, two, three,"
_MESSAGES = [{"role": "user", "content": _PROMPT}]
# Long enough that nobody sees the end.
_CHAT = {"model": MODEL, "messages": _MESSAGES, "max_tokens": 1800, "ignore_eos": True}
_COMPLETION = {"model": MODEL, "prompt": _PROMPT, "max_tokens": 1800, "ignore_eos": True}
_RESPONSE = {"model": MODEL, "max_output_tokens": 1800, "input": _PROMPT, "temperature": 2.0}
_PACKAGE = "/burrstone.openai.v1"


def close(sock: socket.socket) -> None:
    sock.close()


def half_close(sock: socket.socket) -> None:
    """Say that nothing more will be sent; that too ends the request, and the server closes."""
    sock.shutdown(socket.SHUT_WR)
    with sock:
        while sock.recv(65536):
            pass


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def http(server: Server, path: str, body: dict[str, Any], leave: Callable[[socket.socket], None]) -> Leave:
    """Ask over a bare socket; a stream has begun when this returns."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    sock = socket.create_connection(("127.0.0.1", server.http_port), timeout=120)
    sock.sendall(head.encode() + data)
    if body.get("stream"):
        first = sock.recv(1024)
        assert first.startswith(b"HTTP/1.1 200"), first
    return lambda: leave(sock)


def grpc_stream(server: Server, method: str, message: Message, *, by_channel: bool = False) -> Leave:
    """A stream that has begun; it is cancelled, or its whole channel closed."""
    channel, call = _grpc(server, "unary_stream", method, message)
    next(iter(call))
    return channel.close if by_channel else lambda: _cancel(call, channel)


def grpc_once(server: Server, method: str, message: Message) -> Leave:
    """A whole answer, cancelled while it is made."""
    channel, call = _grpc(server, "unary_unary", method, message)
    return lambda: _cancel(call, channel)


def _grpc(server: Server, shape: Literal["unary_unary", "unary_stream"], method: str, message: Message) -> Any:
    # A pool of its own: channels to one address share a connection otherwise, and closing one would end nothing.
    channel: Any = grpc.insecure_channel(server.grpc_address, [("grpc.use_local_subchannel_pool", 1)])
    path = _PACKAGE + method
    start = channel.unary_stream(path) if shape == "unary_stream" else channel.unary_unary(path).future
    return channel, start(message.SerializeToString(), timeout=300)


def _cancel(call: Any, channel: Any) -> None:
    call.cancel()
    channel.close()


def _chat(**fields: Any) -> chat_pb2.ChatCompletionParams:
    return from_json(chat_pb2.ChatCompletionParams, _CHAT | fields)


STREAM = {"stream": True}
SAMPLED = {"n": 3, "temperature": 1.0}
WAYS: list[Callable[[Server], Leave]] = [
    lambda server: http(server, "/v1/chat/completions", _CHAT | STREAM, close),
    lambda server: http(server, "/v1/chat/completions", _CHAT, close),
    lambda server: grpc_stream(
        server, ".ChatCompletionService/StreamChatCompletion", chat_pb2.StreamChatCompletionRequest(params=_chat())
    ),
    lambda server: http(server, "/v1/chat/completions", _CHAT | STREAM | SAMPLED, half_close),
    lambda server: http(server, "/v1/completions", _COMPLETION | SAMPLED, reset),
    lambda server: http(server, "/v1/responses", _RESPONSE | STREAM, close),
    lambda server: grpc_once(
        server,
        ".ChatCompletionService/CreateChatCompletion",
        chat_pb2.CreateChatCompletionRequest(params=_chat(**SAMPLED)),
    ),
    lambda server: http(
        server, "/v1/messages", {"model": MODEL, "messages": _MESSAGES, "max_tokens": 1800} | STREAM, half_close
    ),
    lambda server: grpc_stream(
        server,
        ".CompletionService/StreamCompletion",
        completions_pb2.StreamCompletionRequest(params=from_json(completions_pb2.CompletionParams, _COMPLETION)),
        by_channel=True,
    ),
    lambda server: grpc_stream(
        server,
        ".ResponseService/StreamResponse",
        responses_pb2.StreamResponseRequest(params=from_json(responses_pb2.ResponseParams, _RESPONSE)),
    ),
    lambda server: http(server, "/v1/responses", _RESPONSE, half_close),
]


def clients(server: Server, count: int) -> list[Leave]:
    """So many clients, come all together, with an answer under way; each leaves when its function is called."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda way: way(server), islice(cycle(WAYS), count)))
