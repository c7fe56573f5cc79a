"""The smallest text that satisfies a grammar: what the scripted engine answers when the request constrains it."""

import json
from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 16
_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "a@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def schema_example(schema: Any, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """A small instance of a JSON schema. Raises ValueError for one it cannot satisfy."""
    if depth > _MAX_DEPTH:
        raise ValueError("the schema recurses without end")
    if not isinstance(schema, dict):
        return {}
    root = schema if root is None else root
    if "$ref" in schema:
        return schema_example(_resolve(schema["$ref"], root), root, depth + 1)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return schema_example(schema[key][0], root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        wanted = set(schema.get("required", []))
        properties = schema.get("properties", {})
        return {name: schema_example(inner, root, depth + 1) for name, inner in properties.items() if name in wanted}
    if kind == "array":
        return [schema_example(schema.get("items", {}), root, depth + 1) for _ in range(schema.get("minItems", 0))]
    return _scalar(kind, schema)


def regex_example(pattern: str) -> str:
    """A short string that the pattern matches."""
    import re._parser as parser  # the standard library's own parser, by its private name

    return "".join(_regex_parts(parser.parse(pattern)))


def structural_tag_example(tag: str) -> str:
    """A text that follows an xgrammar structural tag, such as vLLM's forced tool calls."""
    return _tag_format(json.loads(tag)["format"])


def _resolve(ref: str, root: Mapping[str, Any]) -> Any:
    here: Any = root
    for part in ref.removeprefix("#/").split("/"):
        here = here[part]
    return here


def _scalar(kind: str | None, schema: Mapping[str, Any]) -> Any:
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1 if "exclusiveMinimum" in schema else 0)
        high = schema.get("maximum", low)
        value = min(low, high) if low > high else low
        return int(value) if kind == "integer" else value
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    if "pattern" in schema:
        return regex_example(schema["pattern"].strip("^$"))
    text = _FORMATS.get(schema.get("format", ""), "Paris")
    text = text.ljust(schema.get("minLength", 0), "x")
    return text[: schema["maxLength"]] if "maxLength" in schema else text


def _regex_parts(parsed: Any) -> list[str]:
    parts: list[str] = []
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL":
            parts.append(chr(argument))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, _, inner = argument
            parts += _regex_parts(inner) * low
        elif name == "SUBPATTERN":
            parts += _regex_parts(argument[3])
        elif name == "BRANCH":
            parts += _regex_parts(argument[1][0])
        elif name == "IN":
            parts.append(_class_member(argument))
        elif name in ("ANY", "NOT_LITERAL"):
            parts.append("a" if name == "ANY" or chr(argument) != "a" else "b")
    return parts


def _class_member(members: Any) -> str:
    classes = {"CATEGORY_DIGIT": "0", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " "}
    source = "".join(chr(code) for code in range(33, 127))
    if str(members[0][0]) == "NEGATE":
        refused = {_class_member([member]) for member in members[1:]}
        return next(char for char in source if char not in refused)
    operation, argument = members[0]
    if str(operation) == "RANGE":
        return chr(argument[0])
    if str(operation) == "CATEGORY":
        return classes.get(str(argument), "a")
    return chr(argument)


def _tag_format(node: Mapping[str, Any]) -> str:
    kind = node["type"]
    if kind == "const_string":
        return str(node["value"])
    if kind == "json_schema":
        return json.dumps(schema_example(node["json_schema"]))
    if kind == "regex":
        return regex_example(node["pattern"])
    if kind == "sequence":
        return "".join(_tag_format(element) for element in node["elements"])
    if kind == "or":
        return _tag_format(node["elements"][0])
    if kind == "tag":
        end = node["end"] if isinstance(node["end"], str) else node["end"][0]
        return f"{node['begin']}{_tag_format(node['content'])}{end}"
    if kind in ("triggered_tags", "tags_with_separator"):
        return _tag_format(dict(node["tags"][0]) | {"type": "tag"})
    if kind == "any_text":
        return ""
    raise ValueError(f"structural tag of type {kind!r} is not known")
