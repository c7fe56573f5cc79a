"""Limits on what a grammar may ask of the engine: a schema, regex or choice list is compiled per request."""

from typing import Any

import msgspec

from burrstone.batching.errors import InvalidRequest
from burrstone.serving.config import LimitsConfig


def check_schema(schema: Any, limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest when a JSON schema is too large, too deep, or not an object."""
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"Invalid value for '{param}': a JSON schema is an object.", param=param, code="invalid_type"
        )
    num_bytes = len(msgspec.json.encode(schema))
    if num_bytes > limits.max_grammar_bytes:
        raise _too_large(param, num_bytes, limits)
    if _depth(schema) > limits.max_grammar_depth:
        raise InvalidRequest(
            f"Invalid value for '{param}': the schema nests deeper than {limits.max_grammar_depth} levels.",
            param=param,
            code="invalid_value",
        )


def check_text(text: str, limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest when a regex or grammar is too large."""
    num_bytes = len(text.encode(errors="surrogatepass"))
    if num_bytes > limits.max_grammar_bytes:
        raise _too_large(param, num_bytes, limits)


def check_choices(choices: list[str], limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest when a choice list is empty, too long or too large."""
    if not choices or len(choices) > limits.max_choices:
        raise InvalidRequest(
            f"Invalid value for '{param}': give 1 to {limits.max_choices} choices.", param=param, code="invalid_value"
        )
    check_text("".join(choices), limits, param)


def _depth(node: Any) -> int:
    deepest, stack = 0, [(node, 1)]
    while stack:
        here, depth = stack.pop()
        deepest = max(deepest, depth)
        children = here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()
        stack += [(child, depth + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def _too_large(param: str, num_bytes: int, limits: LimitsConfig) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{param}': {num_bytes} bytes, but limits.max_grammar_bytes allows {limits.max_grammar_bytes}.",
        param=param,
        code="invalid_value",
    )
