"""The allow-list: every route that needs the engine, and what it calls. Anything else is 404."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from burrstone.batching.errors import InvalidRequest
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.types import Api, JsonObject, Stream

Result = JsonObject | Stream
_SEQUENCE_NUMBER = re.compile(r"[0-9]{1,18}")
_PAGE_SIZE = re.compile(r"[1-9][0-9]?|100")
Run = Callable[[Api, JsonObject, RequestMeta, str, bytes], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`run` gets the API, the body, the metadata, the value in the path and the query string."""

    name: str
    run: Run
    has_body: bool = True
    done_marker: bool = False
    anthropic: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """An operation and the value its path carried."""

    operation: Operation
    path_value: str


def _body(
    name: str, method: Callable[[Api], Callable[[JsonObject, RequestMeta], Awaitable[Result]]], **kw: bool
) -> Operation:
    return Operation(name, lambda api, body, meta, _value, _query: method(api)(body, meta), **kw)


def _by_id(name: str, method: Callable[[Api], Callable[[str, RequestMeta], Awaitable[Result]]]) -> Operation:
    return Operation(name, lambda api, _body, meta, value, _query: method(api)(value, meta), has_body=False)


async def _retrieve(api: Api, _body: JsonObject, meta: RequestMeta, response_id: str, query: bytes) -> Result:
    options = parse_qs(query.decode("latin-1"))
    stream = options.get("stream", ["false"])[-1].lower() == "true"
    after = options.get("starting_after", [None])[-1]
    if after is not None and not _SEQUENCE_NUMBER.fullmatch(after):
        raise InvalidRequest("starting_after must be a sequence number.", param="starting_after", code="invalid_type")
    return await api.retrieve_response(
        response_id, meta, stream=stream, starting_after=None if after is None else int(after)
    )


async def _input_items(api: Api, _body: JsonObject, meta: RequestMeta, response_id: str, query: bytes) -> Result:
    options = parse_qs(query.decode("latin-1"))
    order, limit = options.get("order", ["desc"])[-1], options.get("limit", [None])[-1]
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc.", param="order", code="invalid_value")
    if limit is not None and not _PAGE_SIZE.fullmatch(limit):
        raise InvalidRequest("limit must be a number from 1 to 100.", param="limit", code="invalid_value")
    return await api.response_input_items(
        response_id,
        meta,
        order="asc" if order == "asc" else "desc",
        after=options.get("after", [None])[-1],
        limit=None if limit is None else int(limit),
    )


async def _models(api: Api, _body: JsonObject, meta: RequestMeta, _value: str, _query: bytes) -> Result:
    return await api.models(meta)


_ROUTES: list[tuple[str, str, Operation]] = [
    ("POST", "/v1/chat/completions", _body("chat", lambda api: api.chat, done_marker=True)),
    ("POST", "/v1/completions", _body("completions", lambda api: api.completions, done_marker=True)),
    ("POST", "/v1/responses", _body("responses", lambda api: api.responses)),
    ("GET", "/v1/responses/{id}", Operation("retrieve_response", _retrieve, has_body=False)),
    ("DELETE", "/v1/responses/{id}", _by_id("delete_response", lambda api: api.delete_response)),
    ("POST", "/v1/responses/{id}/cancel", _by_id("cancel_response", lambda api: api.cancel_response)),
    ("GET", "/v1/responses/{id}/input_items", Operation("response_input_items", _input_items, has_body=False)),
    ("POST", "/v1/embeddings", _body("embeddings", lambda api: api.embeddings)),
    ("GET", "/v1/models", Operation("models", _models, has_body=False)),
    ("GET", "/v1/models/{path}", _by_id("model", lambda api: api.model)),
    ("POST", "/v1/messages", _body("messages", lambda api: api.messages, anthropic=True)),
    ("POST", "/v1/messages/count_tokens", _body("count_tokens", lambda api: api.count_tokens, anthropic=True)),
    ("POST", "/tokenize", _body("tokenize", lambda api: api.tokenize)),
    ("POST", "/detokenize", _body("detokenize", lambda api: api.detokenize)),
]
# OpenAI's own routes where an id would stand. They are not offered, so clients must see 404 and not 405.
_NOT_IDS = "compact|input_tokens"
PATHS: frozenset[tuple[str, str]] = frozenset((method, path) for method, path, _ in _ROUTES)


class RouteTable:
    """Exact paths first, then the patterns; `{path}` may hold slashes (model ids do)."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Operation]] = {}
        self._patterns: dict[re.Pattern[str], dict[str, Operation]] = {}
        by_source: dict[str, re.Pattern[str]] = {}
        for method, path, operation in _ROUTES:
            if "{" not in path:
                self._exact.setdefault(path, {})[method] = operation
                continue
            source = path.replace("{id}", rf"((?!(?:{_NOT_IDS})\Z)[^/]+)").replace("{path}", "(.+)")
            pattern = by_source.setdefault(source, re.compile(source))
            self._patterns.setdefault(pattern, {})[method] = operation

    def match(self, path: str) -> dict[str, Match]:
        """Method -> match of everything at this path; empty when there is nothing."""
        exact = self._exact.get(path)
        if exact is not None:
            return {method: Match(operation, "") for method, operation in exact.items()}
        for pattern, operations in self._patterns.items():
            found = pattern.fullmatch(path)
            if found:
                return {method: Match(operation, unquote(found[1])) for method, operation in operations.items()}
        return {}
