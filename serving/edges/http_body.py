"""Reading a request body: size checked while reading, JSON strict, nesting bounded."""

import asyncio
import re
from typing import Any

import msgspec
from starlette.types import Receive, Scope

from burrstone.batching.errors import BodyTooLarge, ClientGone, DeadlineExceeded, InvalidRequest, UnsupportedMediaType
from burrstone.serving.config import HttpConfig, LimitsConfig

_decoder = msgspec.json.Decoder()
# Possessive and unrolled: the plain form takes a second for a prompt of four megabytes, on the event loop.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The last value of each header, names in lower case."""
    return dict(scope["headers"])


async def read_json(scope: Scope, receive: Receive, limits: LimitsConfig, http: HttpConfig) -> dict[str, Any]:
    """The body as a JSON object. Raises UnsupportedMediaType, BodyTooLarge, InvalidRequest, DeadlineExceeded, ClientGone."""
    headers = headers_of(scope)
    content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise UnsupportedMediaType("Send the body as JSON with the header `content-type: application/json`.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Compressed bodies are not accepted; send plain JSON.")
    try:
        async with asyncio.timeout(http.body_timeout_s):
            raw = await _read(headers, receive, limits.max_body_bytes)
    except TimeoutError as error:
        raise DeadlineExceeded(f"The body did not arrive within {http.body_timeout_s:g} s.") from error
    return parse_object(raw, limits)


def parse_object(raw: bytes, limits: LimitsConfig) -> dict[str, Any]:
    """One JSON object from bytes. Raises InvalidRequest; NaN, lone surrogates and deep nesting are refused."""
    _check_depth(raw, limits.max_json_depth)
    try:
        body = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return body


async def _read(headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client went away while sending its request.")
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {max_bytes} bytes that limits.max_body_bytes allows.")


def _check_depth(raw: bytes, max_depth: int) -> None:
    # Fewer opening brackets than the limit cannot nest deeper: the common case costs two C scans.
    if raw.count(b"{") + raw.count(b"[") <= max_depth:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", raw)):
        depth += 1 if bracket[0] in b"{[" else -1
        if depth > max_depth:
            raise InvalidRequest(f"The body nests deeper than {max_depth} levels.", code="invalid_json")
