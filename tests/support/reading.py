"""Clients that read slowly or not at all."""

import json
import socket
import time
from typing import Any

import grpc

from burrstone.openai.v1 import chat_pb2
from burrstone.serving.edges.proto_convert import from_json
from harness import MODEL, Server

_SMALL_BUFFER_BYTES = 2048
# Log-probabilities make each token kilobytes long, so that the buffers in between fill up.
_LONG = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count for ever: one, two, three,"}],
    "max_tokens": 1800,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 20,
}


def open_stream(server: Server, **fields: Any) -> socket.socket:
    """A long stream whose client has hardly any buffer; nothing is read yet."""
    data = json.dumps(_LONG | {"stream": True} | fields).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
    sock.settimeout(120)
    sock.connect(("127.0.0.1", server.http_port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    sock.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
    return sock


def read_bytes(sock: socket.socket, seconds: float) -> int:
    """Read one byte at a time for so long. Returns how many came."""
    until_s, num_bytes = time.monotonic() + seconds, 0
    while time.monotonic() < until_s:
        if not sock.recv(1):
            break
        num_bytes += 1
        time.sleep(0.001)
    return num_bytes


def open_grpc_stream(server: Server, **fields: Any) -> tuple[Any, Any]:
    """(channel, call) of a long gRPC stream of which nothing is read."""
    channel: Any = grpc.insecure_channel(server.grpc_address, [("grpc.use_local_subchannel_pool", 1)])
    request = chat_pb2.StreamChatCompletionRequest(params=from_json(chat_pb2.ChatCompletionParams, _LONG | fields))
    start = channel.unary_stream("/burrstone.openai.v1.ChatCompletionService/StreamChatCompletion")
    return channel, start(request.SerializeToString(), timeout=600)
