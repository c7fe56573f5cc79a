"""Request bodies: one JSON object, read within its bounds, and nothing that JSON does not allow."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Message, Scope

from burrstone.batching.errors import (
    BodyTooLarge,
    ClientGone,
    DeadlineExceeded,
    InvalidRequest,
    ServeError,
    UnsupportedMediaType,
)
from burrstone.serving.config import HttpConfig, LimitsConfig
from burrstone.serving.edges.http_body import parse_object, read_json

LIMITS = LimitsConfig(max_json_depth=8, max_body_bytes=1024)
HTTP = HttpConfig()
# Texts full of what structure is made of: brackets, quotes, backslashes.
_TEXT = st.text(st.sampled_from('[]{}"\\\u00e9\U0001f999,:a\n') | st.characters(exclude_categories=["Cs"]), max_size=12)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=40,
)


def depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@given(st.dictionaries(_TEXT, _JSON, max_size=6), st.booleans())
@example(nested(8), False)
@example(nested(9), False)
@example({"a": "[" * 100, "b": '"' * 100, "c": "\\" * 99}, False)
@settings(deadline=None)
def test_objects_come_through_and_deeper_ones_do_not(body: dict[str, Any], ascii_only: bool) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only).encode()
    if depth(body) > LIMITS.max_json_depth:
        with pytest.raises(InvalidRequest, match="deeper than 8 levels"):
            parse_object(raw, LIMITS)
    else:
        assert parse_object(raw, LIMITS) == body


@given(st.binary(max_size=60) | st.text(st.sampled_from('[]{}",:\\ntfu01-.e '), max_size=60).map(str.encode))
@settings(deadline=None)
def test_whatever_comes_is_an_object_or_a_refusal(raw: bytes) -> None:
    try:
        body = parse_object(raw, LIMITS)
    except InvalidRequest as refused:
        assert refused.code == "invalid_json" and refused.message
    else:
        assert json.loads(raw) == body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a": 1} {}',
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": 01}',
        b'{"a": 1,}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_json_does_not_allow(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_object(raw, LimitsConfig())
    assert refused.value.code == "invalid_json"


def request(parts: list[bytes], **headers: str) -> tuple[Scope, Iterator[Message]]:
    """An ASGI scope, and its messages: the body in these parts, then the client going away."""
    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    messages: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if messages:
        messages[-1]["more_body"] = False
    scope: Scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in named.items()]}
    return scope, iter([*messages, {"type": "http.disconnect"}])


async def read(parts: list[bytes], **headers: str) -> dict[str, Any]:
    scope, messages = request(parts, **headers)

    async def receive() -> Message:
        return next(messages)

    return await read_json(scope, receive, LIMITS, HTTP)


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
async def test_a_body_in_pieces(content_type: str) -> None:
    assert await read([b'{"a"', b"", b": 1}"], content_type=content_type, content_encoding="identity") == {"a": 1}


@pytest.mark.parametrize(
    ("parts", "headers", "error"),
    [
        ([b"{}"], {"content_type": "text/plain"}, UnsupportedMediaType),
        ([b"{}"], {"content_type": "application/jsonx"}, UnsupportedMediaType),
        ([b"{}"], {"content_type": ""}, UnsupportedMediaType),
        ([b"{}"], {"content_encoding": "gzip"}, UnsupportedMediaType),
        ([b"{" + b" " * 1023 + b"}"], {}, BodyTooLarge),
        ([b"{", *[b" " * 100] * 11], {}, BodyTooLarge),
        ([], {"content_length": "1025"}, BodyTooLarge),
        ([], {"content_length": "2"}, ClientGone),
    ],
)
async def test_bodies_that_are_not_read(parts: list[bytes], headers: dict[str, str], error: type[ServeError]) -> None:
    with pytest.raises(error):
        await read(parts, **headers)


async def test_the_largest_body_is_read() -> None:
    assert await read([b"{" + b" " * 1022 + b"}"], content_length="1024") == {}


async def test_reading_stops_at_the_limit() -> None:
    """A body without an end is not waited for, nor kept."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b" " * 100, "more_body": True}

    with pytest.raises(BodyTooLarge):
        await read_json(request([])[0], receive, LIMITS, HTTP)
    assert received == 11


async def test_a_body_that_stops_coming_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    with pytest.raises(DeadlineExceeded, match="within"):
        await read_json(request([])[0], receive, LIMITS, HttpConfig(body_timeout_s=0.01))
