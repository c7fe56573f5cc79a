"""A small value of a JSON schema: what the scripted engine answers when a schema constrains it."""

import copy
import math
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from burrstone.serving.engine.grammar_example import regex_example

_MAX_DEPTH = 24
_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "a@example.com",
    "idn-email": "a@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com",
    "uri-reference": "/a",
    "json-pointer": "/a",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_KIND_OF_KEYWORD = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "minProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "pattern": "string",
    "format": "string",
    "minLength": "string",
    "maxLength": "string",
    "minimum": "number",
    "maximum": "number",
    "exclusiveMinimum": "number",
    "exclusiveMaximum": "number",
    "multipleOf": "number",
}
_PLACE_NAMES = ("city", "location", "place", "town")
_PLACE = re.compile(r"\b(?:in|for|at|to|of)\s+([A-Z][\w-]+)")
_DEFAULT_TEXT = "Paris"


def schema_example(schema: Any, text: str = "") -> Any:
    """A small value of a JSON schema; a place it asks for is taken from `text`. Raises ValueError if none is found.

    An object gets its required properties, or all where none is required. `not`, `if` and `dependent...` are not read.
    """
    return _Example(schema, text).value(schema, 0)


def first_possible(options: Iterable[Any], make: Callable[[Any], Any]) -> Any:
    """The first option that can be made; the last one's error when none can."""
    failure = ValueError("the schema allows no value: it lists no alternative")
    for option in options:
        try:
            return make(option)
        except ValueError as error:
            failure = error
    raise failure


class _Example:
    """One walk over one schema, which `$ref` points into."""

    def __init__(self, root: Any, text: str) -> None:
        self._root = root
        self._text = text

    def value(self, schema: Any, depth: int, name: str = "") -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("the schema recurses without end")
        if schema is False:
            raise ValueError("the schema allows no value")
        if not isinstance(schema, dict):
            return {}
        if "const" in schema:
            return copy.deepcopy(schema["const"])
        if "enum" in schema:
            return copy.deepcopy(first_possible(schema["enum"], lambda member: member))
        if "$ref" in schema:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return self.value(_merged(rest, _resolve(schema["$ref"], self._root)), depth + 1, name)
        if "allOf" in schema:
            merged = {key: value for key, value in schema.items() if key != "allOf"}
            for part in schema["allOf"]:
                merged = _merged(merged, self._dereferenced(part))
            return self.value(merged, depth + 1, name)
        key = next((key for key in ("anyOf", "oneOf") if key in schema), None)
        if key is None:
            return self._of_kind(schema, depth, name)
        rest = {other: value for other, value in schema.items() if other != key}
        return first_possible(
            schema[key], lambda option: self.value(_merged(rest, self._dereferenced(option)), depth + 1, name)
        )

    def _dereferenced(self, schema: Any, hops: int = 0) -> Any:
        if not isinstance(schema, dict) or "$ref" not in schema:
            return schema
        if hops > _MAX_DEPTH:
            raise ValueError("the schema refers to itself")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return self._dereferenced(_merged(rest, _resolve(schema["$ref"], self._root)), hops + 1)

    def _of_kind(self, schema: dict[str, Any], depth: int, name: str) -> Any:
        kind = schema.get("type", next((_KIND_OF_KEYWORD[key] for key in schema if key in _KIND_OF_KEYWORD), "object"))
        if isinstance(kind, list):
            return first_possible(kind, lambda one: self._of_kind(schema | {"type": one}, depth, name))
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth, name)
            case "string":
                return self._string(schema, name)
            case "integer" | "number":
                return _number(schema, kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
        raise ValueError(f"the schema has the unknown type {kind!r}")

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        at_least = schema.get("minProperties", 0)
        optional = [name for name in properties if name not in required]
        # A tool that requires nothing is still shown an argument, at the top only: schemas recurse.
        num_optional = len(optional) if not required and depth == 0 else max(0, at_least - len(required))
        wanted = {*required, *optional[:num_optional]}
        result = {
            name: self.value(inner, depth + 1, name)
            for name, inner in properties.items()
            if name in required or (name in wanted and self._possible(inner, depth))
        }
        others = schema.get("additionalProperties", True)
        for name in required:
            if name not in result:
                result[name] = self.value(others, depth + 1, name)
        for number in range(max(0, at_least - len(result))):
            result[f"key{number + 1}"] = self.value(others, depth + 1)
        return result

    def _possible(self, schema: Any, depth: int) -> bool:
        try:
            self.value(schema, depth + 1)
        except ValueError:
            return False
        return True

    def _array(self, schema: dict[str, Any], depth: int, name: str) -> list[Any]:
        first = schema.get("prefixItems", [])
        others = schema.get("items", True)
        result = [self.value(item, depth + 1, name) for item in first[: schema.get("maxItems", len(first))]]
        while len(result) < schema.get("minItems", 0):
            value = self.value(others, depth + 1, name)
            if schema.get("uniqueItems"):
                value = _unlike(result, value, others)
            result.append(value)
        return result

    def _string(self, schema: dict[str, Any], name: str) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if "pattern" in schema:
            text = regex_example(schema["pattern"], max(low, 1))
        elif schema.get("format") in _FORMATS:
            text = _FORMATS[schema["format"]]
        else:
            text = self._place() if name.lower() in _PLACE_NAMES else _DEFAULT_TEXT
            text = text.ljust(low, "x")[: None if high == math.inf else high]
        if not low <= len(text) <= high:
            raise ValueError(f"no text found with {low} to {high} characters")
        return text

    def _place(self) -> str:
        found = _PLACE.search(self._text)
        return found[1] if found else _DEFAULT_TEXT


def _merged(left: dict[str, Any], right: Any) -> Any:
    """A schema for both; where two bounds meet, the narrower, for other keywords the right one's."""
    if right is True:
        return left
    if not isinstance(right, dict):
        return right
    merged = left | right
    for key in left.keys() & right.keys():
        if key == "properties":
            merged[key] = left[key] | right[key]
        elif key in ("required", "allOf"):
            merged[key] = [*left[key], *(value for value in right[key] if value not in left[key])]
        elif key in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"):
            merged[key] = max(left[key], right[key])
        elif key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems"):
            merged[key] = min(left[key], right[key])
        elif key == "enum":
            merged[key] = [value for value in left[key] if value in right[key]]
    return merged


def _resolve(ref: str, root: Any) -> Any:
    if not ref.startswith("#"):
        raise ValueError(f"the schema refers to another document: {ref!r}")
    here = root
    for part in ref.removeprefix("#").split("/")[1:]:
        name = urllib.parse.unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            here = here[int(name) if isinstance(here, list) else name]
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the schema has nothing at {ref!r}") from error
    return here


def _number(schema: Mapping[str, Any], integer: bool) -> float:
    """The number nearest to zero, in exact arithmetic, on the grid that `multipleOf` draws."""
    lows = [Fraction(str(schema[key])) for key in ("minimum", "exclusiveMinimum") if key in schema]
    highs = [Fraction(str(schema[key])) for key in ("maximum", "exclusiveMaximum") if key in schema]
    low, high = max(lows, default=None), min(highs, default=None)
    grid = Fraction(str(schema["multipleOf"])) if "multipleOf" in schema else Fraction(1)
    if integer and grid.denominator != 1:
        grid = Fraction(grid.numerator)
    start = max(Fraction(0) if high is None else min(Fraction(0), high), Fraction(0) if low is None else low)
    nearest = math.floor(start / grid) * grid
    tried = [nearest, nearest + grid, nearest - grid]
    if not integer and "multipleOf" not in schema and low is not None and high is not None:
        tried.append((low + high) / 2)
    for value in [start, *tried] if not integer and "multipleOf" not in schema else tried:
        if _within(value, schema):
            return int(value) if value.denominator == 1 else float(value)
    raise ValueError("the schema's bounds leave no number")


def _within(value: Fraction, schema: Mapping[str, Any]) -> bool:
    checks: dict[str, Callable[[Fraction], bool]] = {
        "minimum": lambda bound: value >= bound,
        "maximum": lambda bound: value <= bound,
        "exclusiveMinimum": lambda bound: value > bound,
        "exclusiveMaximum": lambda bound: value < bound,
    }
    return all(check(Fraction(str(schema[key]))) for key, check in checks.items() if key in schema)


def _unlike(others: list[Any], value: Any, schema: Any) -> Any:
    """A value of the schema that `others` does not hold: another member of its enum, the next number, a longer text."""
    if value not in others:
        return value
    if isinstance(schema, dict) and "enum" in schema:
        return first_possible([member for member in schema["enum"] if member not in others], lambda member: member)
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind in ("integer", "number"):
        return schema_example(schema | {"minimum": max(others) + schema.get("multipleOf", 1)})
    if kind == "string" and "pattern" not in schema and "format" not in schema:
        return schema_example(schema | {"minLength": max(map(len, others)) + 1})
    raise ValueError("no distinct items found for uniqueItems")
