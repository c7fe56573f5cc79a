"""A text that follows an xgrammar structural tag, such as the ones vLLM forces tool calls with."""

import json
import re
from collections.abc import Mapping
from typing import Any

from burrstone.serving.engine.grammar_example import ebnf_example, regex_example
from burrstone.serving.engine.schema_example import first_possible, schema_example


def structural_tag_example(
    tag: str | Mapping[str, Any], tools: Mapping[str, Any] | None = None, text: str = ""
) -> str | None:
    """A text that follows an xgrammar structural tag, or None where free text follows it as well.

    vLLM leaves the arguments of tools that are not strict unconstrained; theirs come from `tools`, schemas by name.
    """
    loaded = json.loads(tag) if isinstance(tag, str) else tag
    if "structures" in loaded:  # the older form of a tag, which may always be left out
        return None
    top = loaded["format"]
    if top["type"] in ("any_text", "triggered_tags") and not top.get("at_least_one"):
        return None
    return _tag_text(top, tools or {}, text)


def _tag_text(node: Mapping[str, Any], tools: Mapping[str, Any], text: str) -> str:
    match node["type"]:
        case "const_string":
            return str(node["value"])
        case "json_schema" if node.get("style", "json") == "json":
            return json.dumps(schema_example(node["json_schema"], text), ensure_ascii=False)
        case "regex":
            return regex_example(node["pattern"])
        case "grammar":
            return ebnf_example(node["grammar"])
        case "sequence":
            return "".join(_tag_text(element, tools, text) for element in node["elements"])
        case "or":
            return str(first_possible(node["elements"], lambda element: _tag_text(element, tools, text)))
        case "tag":
            return _one_tag(node, tools, text)
        case "triggered_tags" | "tags_with_separator":
            return str(first_possible(node["tags"], lambda tag: _one_tag(tag, tools, text)))
        case "plus":
            return _tag_text(node["content"], tools, text)
        case "repeat":
            return _tag_text(node["content"], tools, text) * int(node["min"])
        case "any_text" | "any_tokens" | "optional" | "star" | "dispatch":
            return ""
    raise ValueError(f"no example for a structural tag of type {node['type']!r}")


def _one_tag(tag: Mapping[str, Any], tools: Mapping[str, Any], text: str) -> str:
    begin, end, content = tag["begin"], tag["end"], tag["content"]
    if dict in (type(begin), type(end)):
        raise ValueError("no example for a structural tag of single tokens")
    if content.get("json_schema") is True:
        named = [name for name in tools if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", begin)]
        if named:
            content = content | {"json_schema": tools[named[0]]}
    return f"{begin}{_tag_text(content, tools, text)}{end if isinstance(end, str) else end[0]}"
