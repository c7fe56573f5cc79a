"""Requests made to hurt: grammars that explode, bodies that once crashed an engine, and what may be answered to them."""

import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness import MODEL, Server

Json = Any
_CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
_STRING = {"type": "string"}


def chat(**fields: Json) -> Json:
    return _CHAT | fields


def structured(**fields: Json) -> Json:
    return chat(structured_outputs=fields)


def tool(name: str, parameters: Json) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def enums(properties: int, values: int) -> Json:
    names = {f"p{i}": {"enum": [f"v{i}_{j}" for j in range(values)]} for i in range(properties)}
    return {"type": "object", "properties": names, "required": list(names)}


def nested(levels: int) -> Json:
    schema: Json = _STRING
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def patterns(count: int) -> Json:
    """Small to send and slow to compile: every repeat is written out."""
    return {
        "anyOf": [{"type": "string", "pattern": f"^[a-z]{{1,50}}(-[{i}a-z]{{1,50}}){{0,20}}$"} for i in range(count)]
    }


def ranges(count: int) -> Json:
    """Slow to check: a range of numbers becomes a grammar of their digits."""
    first, last = -123456789012345678, 987654321098765432
    return {"anyOf": [{"type": "integer", "minimum": first + i, "maximum": last - i} for i in range(count)]}


# What the grammar compiler must survive: refused, or answered.
GRAMMARS: dict[str, Json] = {
    "json_object false": structured(json_object=False),
    "json empty": structured(json=""),
    "json not json": structured(json="{"),
    "regex empty branch": structured(regex="^(|.*)$"),
    "regex repeats of repeats": structured(regex="(a{1000}){1000}"),
    "regex optional repeats": structured(regex="(.{0,200}){200}"),
    "regex nested quantifiers": structured(regex="(a+)+b"),
    "regex thousands of groups": structured(regex="(" * 2000 + "a" + ")" * 2000),
    "regex unbalanced": structured(regex="(["),
    "regex look-ahead": structured(regex="(?=a)b"),
    "regex NUL": structured(regex="a\x00b"),
    "regex too large": structured(regex="a" * 70_000),
    "regex 9,000 words": structured(regex="|".join(f"w{i}" for i in range(9000))),
    "choices 5,000": structured(choice=[f"choice {i}" for i in range(5000)]),
    "choices 1,000": structured(choice=[f"choice {i}" for i in range(1000)]),
    "choices none": structured(choice=[]),
    "choices with quotes": structured(choice=['"', "\\", "\n", "]"]),
    "enums 300 x 50": structured(json=enums(300, 50)),
    "enums 60 x 50": structured(json=enums(60, 50)),
    "schema depth 200": structured(json=nested(200)),
    "schema depth 30": structured(json=nested(14)),
    "schema loop": structured(json={"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "schema unknown type": structured(json={"type": "no such type"}),
    "schema wide": structured(json={"type": "object", "properties": {f"p{i}": _STRING for i in range(500)}}),
    "schema many items": structured(json={"type": "array", "minItems": 10**6, "items": _STRING}),
    "schema long string": structured(json={"type": "string", "minLength": 2**40}),
    "schema bad pattern": structured(json={"type": "string", "pattern": "("}),
    "schema big pattern": structured(json={"type": "string", "pattern": "^(a{1000}){1000}$"}),
    "schema remote ref": structured(json={"$ref": "http://127.0.0.1:1/schema"}),
    "schema big integers": structured(json={"type": "integer", "minimum": -(10**40), "maximum": 10**40}),
    "schema many patterns": structured(json=patterns(60)),
    "schema some patterns": structured(json=patterns(3)),
    "schema many ranges": structured(json=ranges(200)),
    "grammar two roots": structured(grammar='root ::= "a"\nroot ::= "b"'),
    "grammar left recursion": structured(grammar='root ::= root "a" | "b"'),
    "grammar endless": structured(grammar="root ::= root"),
    "grammar empty": structured(grammar=" "),
    "grammar unclosed": structured(grammar='root ::= "a'),
    "structural tag broken": structured(structural_tag='{"structures": [{}], "triggers": 3}'),
    "structural tag empty": structured(structural_tag="{}"),
}
# A good grammar, then a bad one of the same kind, again and again: neither may leave something behind for the other.
PAIRS: list[tuple[Json, Json]] = [
    (structured(json={"type": "boolean"}), structured(json={"type": "booleans"})),
    (structured(regex="[ab]{2}"), structured(regex="[ab{2}")),
    (structured(choice=["a", "b"]), structured(choice=[])),
    (structured(grammar='root ::= "a"'), structured(grammar='root ::= "a" nothing')),
    (
        chat(tools=[tool("f", {"type": "object", "properties": {"a": _STRING}})], tool_choice="required"),
        chat(tools=[tool("f", {"type": "object", "properties": {"a": {"type": 7}}})], tool_choice="required"),
    ),
]
# Regressions of published vLLM vulnerabilities that a text server could open again.
REGRESSIONS: dict[str, Json] = {
    "tools malformed (CVE-2025-48944)": chat(tools=[tool("f", {"type": "object", "pattern": "(", "properties": 3})]),
    "tools not a list": chat(tools={"type": "function"}),
    "tools parameters null type": chat(tools=[tool("f", {"type": None})], tool_choice="required"),
    "tools pattern (CVE-2025-48943)": chat(
        tools=[
            tool("f", {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"]})
        ],
        tool_choice="required",
    ),
    "tools parameters of no type": chat(tools=[tool("f", {"type": [], "properties": {}})], tool_choice="required"),
    "tools properties in a list": chat(
        tools=[tool("f", {"type": "object", "properties": [[]]})], tool_choice="required"
    ),
    "tools many": chat(tools=[tool(f"f{i}", nested(5)) for i in range(129)]),
    "template kwargs (CVE-2025-62426)": chat(chat_template_kwargs={"tokenize": True}),
    "template kwargs template": chat(chat_template_kwargs={"chat_template": "{% for i in range(10**9) %}{% endfor %}"}),
    "template (CVE-2025-61620)": chat(chat_template="{% for i in range(10**9) %}{% endfor %}"),
    "template in the text": chat(
        messages=[{"role": "user", "content": "{% for i in range(10**9) %}{% endfor %}{{ 7*7 }}"}]
    ),
    "prompt_embeds (CVE-2025-62164)": chat(prompt_embeds="gASVAAAA"),
    "n unbounded (CVE-2026-34756)": chat(n=10**9),
    "n 16384": chat(n=16384),
    "logprobs unbounded": chat(logprobs=True, top_logprobs=10**6),
    "placeholder tokens (CVE-2026-44222)": chat(
        messages=[{"role": "user", "content": "<image><|image_pad|><|vision_start|><|audio|>" * 50}]
    ),
    "image from the inside (CVE-2026-24779)": chat(
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254\\@127.0.0.1/"}}],
            }
        ]
    ),
    "tool call markup (CVE-2025-48887)": chat(
        messages=[
            {"role": "user", "content": "<tool_call>\n" + "{" * 5000 + "</tool_call>"},
        ],
        tools=[tool("f", {"type": "object"})],
    ),
    "arguments nest": chat(
        messages=[
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":' * 50_000 + "1"}}
                ],
            },
        ]
    ),
    "arguments nest and close": chat(
        messages=[
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"a":' * 900 + "1" + "}" * 900},
                    }
                ],
            },
        ]
    ),
    "arguments with a lone surrogate": chat(
        messages=[
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
                ],
            },
        ]
    ),
    "logit_bias of a huge id": chat(logit_bias={"9" * 5000: 1}),
    "stop token ids huge": chat(stop_token_ids=[2**31]),
    "bad words huge": chat(bad_words=["a" * 100_000]),
    "stop huge": chat(stop=["a" * 1_000_000]),
    "seed huge": chat(seed=2**63 - 1),
    "max tokens huge": chat(max_tokens=2**63 - 1),
    "max tokens beyond": chat(max_tokens=2**64),
}


@contextmanager
def watched_health(server: Server) -> Iterator[list[float]]:
    """Asks /health all the time; the list receives how long each answer took. Fails when one was not 200."""
    took_s: list[float] = []
    failures: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            started_s = time.monotonic()
            try:
                with urllib.request.urlopen(f"{server.url}/health", timeout=30) as reply:
                    reply.read()
            except OSError as error:
                failures.append(str(error))
            took_s.append(time.monotonic() - started_s)
            done.wait(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took_s
    finally:
        done.set()
        thread.join()
    assert not failures, failures


def raw_http(server: Server, data: bytes) -> bytes:
    """The beginning of whatever is answered to these bytes; empty when the connection is just closed."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as sock:
        # A refusal may come, and the connection go, before a large request is all sent; the answer is read either way.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        try:
            return sock.recv(4096)
        except ConnectionResetError:
            return b""


def post_raw(body: bytes, *headers: str) -> bytes:
    """Bytes of a POST to chat completions with exactly this body."""
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


GOOD_BODY = json.dumps(_CHAT).encode()
# (bytes, statuses that may be answered; 0 is a closed connection)
RAW: dict[str, tuple[bytes, set[int]]] = {
    "huge header (CVE-2025-48956)": (post_raw(GOOD_BODY, "x-big: " + "a" * 2**20), {431, 0}),
    "many headers": (post_raw(GOOD_BODY, *(f"x-{i}: {i}" for i in range(3000))), {431, 0}),
    "huge path": (b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nhost: x\r\n\r\n", {431, 414, 0}),
    "path not ascii": (b"GET /v1/models/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", {400, 404}),
    "path percent": (b"GET /v1/models/%ff%00%ed%a0%80 HTTP/1.1\r\nhost: x\r\n\r\n", {400, 404}),
    "query number": (
        b"GET /v1/responses/x?starting_after=" + b"9" * 6000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        {400, 404},
    ),
    "header not ascii": (post_raw(GOOD_BODY, "authorization: Bearer \xff\xfe", "x-request-id: \xff"), {200, 400}),
    "method unknown": (b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", {400, 405, 501}),
    "not http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, {400, 0}),
    "length and chunks": (post_raw(b"0\r\n\r\n", "content-length: 5", "transfer-encoding: chunked"), {400}),
    "length negative": (post_raw(b"", "content-length: -1"), {400}),
    "length huge": (post_raw(b"", "content-length: " + "9" * 400), {400, 413}),
    "length beyond the limit": (post_raw(b"", "content-length: 99999999999"), {413}),
    "body bom": (post_raw(b"\xef\xbb\xbf" + GOOD_BODY), {400}),
    "body utf-16": (post_raw(GOOD_BODY.decode().encode("utf-16")), {400}),
    "body deep": (post_raw(b'{"a":' * 100_000), {400}),
    "body surrogate": (post_raw(GOOD_BODY.replace(b"Hi", b"\\ud800")), {400}),
    "body twice the field": (post_raw(GOOD_BODY[:-1] + b', "n": 1, "n": 100000}'), {400}),
    "body number": (post_raw(GOOD_BODY[:-1] + b', "seed": ' + b"9" * 6000 + b"}"), {400}),
    "websocket": (
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        {200, 400, 426},
    ),
}
