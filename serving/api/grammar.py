"""Limits on what a grammar may ask of the engine: a schema, regex or choice list is compiled per request."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from burrstone.batching.errors import InvalidRequest
from burrstone.serving.config import LimitsConfig

# Keywords of a JSON schema that hold schemas: by name, in a list, or one.
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_SCHEMA_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_SCHEMAS = {"items", "not", "if", "then", "else", "additionalProperties", "contains", "propertyNames"}
_MAX_SHOWN = 120
_MAX_WRITTEN_OUT = 10_000
_TAG_DEPTH = 8  # levels of a structural tag around its deepest schema
_COUNTED = re.compile(r"\{\d*,?\d*\}")
# Of a regex: an escape, a class, a counted repeat (its larger number), or one character.
_PARTS = re.compile(r"\\.|\[(?:\\.|[^\]\\])+\]|\{(?:\d+,)?(?P<most>\d+),?\}|.", re.DOTALL)


def check_schema(schema: Any, limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest when a JSON schema is too large, too deep, or not an object."""
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"Invalid value for '{param}': a JSON schema is an object.", param=param, code="invalid_type"
        )
    num_bytes = len(msgspec.json.encode(schema))
    if num_bytes > limits.max_grammar_bytes:
        raise _too_large(param, num_bytes, limits)
    if depth(schema) > limits.max_grammar_depth:
        raise InvalidRequest(
            f"Invalid value for '{param}': the schema nests deeper than {limits.max_grammar_depth} levels.",
            param=param,
            code="invalid_value",
        )
    _check_repeats(sum(map(_written_out, _patterns(schema))), param)
    misplaced = _misplaced(schema)
    if misplaced is not None:
        raise InvalidRequest(f"Invalid value for '{param}': {misplaced}.", param=param, code="invalid_value")


def check_regex(text: str, limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest when a regex is too large, also once its counted repeats are written out."""
    check_text(text, limits, param)
    _check_repeats(_written_out(text), param)


def check_structural_tag(text: str, limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest when a structural tag, or a schema or regex in it, is beyond the limits."""
    check_text(text, limits, param)
    tag = parse_json(text, param)
    if depth(tag) > limits.max_grammar_depth + _TAG_DEPTH:
        raise InvalidRequest(
            f"Invalid value for '{param}': it nests deeper than {limits.max_grammar_depth + _TAG_DEPTH} levels.",
            param=param,
            code="invalid_value",
        )
    size, stack = 0, [(tag, 1)]  # each part with how often it is repeated
    while stack:
        here, repeats = stack.pop()
        if isinstance(here, dict):
            most = here.get("max")
            if here.get("type") == "repeat" and isinstance(most, int):
                repeats = min(repeats * max(1, most), _MAX_WRITTEN_OUT + 1)
                size = max(size, repeats)
            if isinstance(here.get("pattern"), str):
                size += repeats * _written_out(here["pattern"])
        for key, child in here.items() if isinstance(here, dict) else enumerate(here):
            if key in ("json_schema", "schema") and isinstance(child, dict):
                check_schema(child, limits, param)
                size += repeats * sum(map(_written_out, _patterns(child)))
            elif isinstance(child, dict | list):
                stack.append((child, repeats))
    _check_repeats(size, param)


def parse_json(text: str, param: str) -> Any:
    """A grammar that is written as JSON. Raises InvalidRequest."""
    try:
        parsed = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"Invalid value for '{param}': {error}.", param=param, code="invalid_value") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"Invalid value for '{param}': must be a JSON object.", param=param, code="invalid_type")
    return parsed


def check_text(text: str, limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest when a grammar is too large."""
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


def depth(node: Any) -> int:
    """Levels of objects and lists in it."""
    deepest, stack = 0, [(node, 1)]
    while stack:
        here, level = stack.pop()
        deepest = max(deepest, level)
        children = here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()
        stack += [(child, level + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def _check_repeats(size: int, param: str) -> None:
    # Compiling takes time by the written-out size, and nothing else with a grammar is compiled meanwhile.
    if size > _MAX_WRITTEN_OUT:
        raise InvalidRequest(
            f"Invalid value for '{param}': with its repeats written out, it has {size} parts; at most {_MAX_WRITTEN_OUT}.",
            param=param,
            code="invalid_value",
        )


def _written_out(pattern: str) -> int:
    """Parts of a regex that has counted repeats, once they are written out; 0 for one that has none."""
    if not _COUNTED.search(pattern):
        return 0
    sizes, last = [0], 0  # of each open group, and of the part that a repeat would repeat
    for part in _PARTS.finditer(pattern):
        text = part[0]
        if text == "(":
            sizes.append(0)
        elif text == ")":
            last = sizes.pop() if len(sizes) > 1 else 0
            sizes[-1] += last
        elif part["most"] is not None:
            repeats = min(int(part["most"][-9:]), _MAX_WRITTEN_OUT)
            sizes[-1] += last * (repeats - 1)
            last *= repeats
        elif text not in "*+?|":
            last = 1
            sizes[-1] += 1
    return sum(sizes)


def _patterns(schema: Any) -> Iterable[str]:
    stack = [schema]
    while stack:
        here = stack.pop()
        if isinstance(here, dict):
            if isinstance(here.get("pattern"), str):
                yield here["pattern"]
            if isinstance(here.get("patternProperties"), dict):
                yield from here["patternProperties"]
        children = here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()
        stack += [child for child in children if isinstance(child, dict | list)]


def _misplaced(schema: Any) -> str | None:
    """Which keyword has a value of the wrong kind, or None. What the values mean is the engine's to judge."""
    stack = [(schema, "the schema")]
    while stack:
        here, where = stack.pop()
        if isinstance(here, bool):
            continue
        if not isinstance(here, dict):
            return f"{where} must be an object or a boolean"
        for keyword, value in here.items():
            place = f"{where}.{keyword}"[-_MAX_SHOWN:]
            if keyword == "type" and not _is_type(value):
                return f"{place} must be a string or a list of strings"
            if keyword in _NAMED_SCHEMAS:
                if not isinstance(value, dict):
                    return f"{place} must be an object"
                stack += [(child, f"{place}.{name}"[-_MAX_SHOWN:]) for name, child in value.items()]
            elif keyword in _SCHEMA_LISTS or (keyword == "items" and isinstance(value, list)):
                if not isinstance(value, list):
                    return f"{place} must be a list"
                stack += [(child, f"{place}[{number}]") for number, child in enumerate(value)]
            elif keyword in _SCHEMAS:
                stack.append((value, place))
    return None


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) for name in names)


def _too_large(param: str, num_bytes: int, limits: LimitsConfig) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{param}': {num_bytes} bytes, but limits.max_grammar_bytes allows {limits.max_grammar_bytes}.",
        param=param,
        code="invalid_value",
    )
