"""What every answer must look like whatever was sent, and what the server says of itself meanwhile."""

import json
import re
import urllib.request
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from harness import MODEL, Server

# Only these may be answered with a feature the model lacks.
NO_FEATURE = ("/v1/embeddings", "EmbeddingService/CreateEmbedding", "RawService/Invoke")
_OUR_FAULT = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS)


def http_complaint(path: str, status: int, body: bytes, *, is_stream: bool) -> str | None:
    """What is wrong with this HTTP answer, or None."""
    if status >= 500 and not (status == 501 and path in NO_FEATURE):
        return f"{status}: {body[:300]!r}"
    if status >= 400:
        return envelope_complaint(path, body)
    return stream_complaint(body) if is_stream else None


def envelope_complaint(path: str, body: bytes) -> str | None:
    """What is wrong with an error's envelope, or None."""
    try:
        reply = json.loads(body)
    except ValueError:
        return f"an error that is not JSON: {body[:200]!r}"
    error = reply.get("error") if isinstance(reply, dict) else None
    if not isinstance(error, dict):
        return f"an error without an envelope: {body[:200]!r}"
    if path.startswith("/v1/messages"):
        right = reply.get("type") == "error" and isinstance(error.get("type"), str)
    else:
        right = error.keys() == {"message", "type", "param", "code"} and isinstance(error["type"], str)
        right = right and all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
    if not right or not isinstance(error.get("message"), str) or not error["message"]:
        return f"a wrong envelope: {body[:200]!r}"
    return None


def stream_complaint(body: bytes) -> str | None:
    """Streams that fail must not do so because of the server."""
    failed = re.search(rb'"type":"server_error".{0,200}|"code":"server_error".{0,200}', body)
    return None if failed is None else f"a stream failed: {failed[0]!r}"


def grpc_complaint(method: str, error: grpc.RpcError) -> str | None:
    """What is wrong with this gRPC error, or None."""
    code: grpc.StatusCode = error.code()
    text = error.details()
    if code in _OUR_FAULT or (code is grpc.StatusCode.UNIMPLEMENTED and not method.endswith(NO_FEATURE)):
        return f"{code.name}: {text}"
    metadata: Any = error.trailing_metadata() or ()
    packed = dict(metadata).get("grpc-status-details-bin")
    if packed is None:
        return f"{code.name} without details: {text}"
    status = status_pb2.Status.FromString(packed)
    info = error_details_pb2.ErrorInfo()
    if status.code != code.value[0] or not status.details or not status.details[0].Unpack(info) or not info.reason:
        return f"{code.name} with wrong details: {status}"
    return None


def metric(server: Server, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    values = [float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{re.escape(name)}[ {{]", line)]
    assert values, f"there is no metric {name}"
    return sum(values)


def generations(server: Server) -> float:
    """What the seam and, where it is real, the engine have running or waiting."""
    names = ["burrstone_generations_running"]
    if is_real(server):
        names += ["vllm:num_requests_running", "vllm:num_requests_waiting"]
    return sum(metric(server, name) for name in names)


def is_real(server: Server) -> bool:
    """Whether vLLM's engine core runs; the scripted engine has no statistics."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as reply:
        return b"vllm:num_requests_running" in reply.read()


def greedy_text(server: Server) -> str:
    """The same question, answered greedily: what must not change whatever else was asked."""
    messages = [{"role": "user", "content": "What is a mill, and what is a burrstone?"}]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0}
    # The first time fills the prefix cache: from then on the prompt is always computed in the same steps.
    for _ in range(2):
        status, reply = server.post("/v1/chat/completions", body)
        assert status == 200, reply
    return str(reply["choices"][0]["message"]["content"])
