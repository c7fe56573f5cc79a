"""What the scripted engine answers where no rule does: enough wit for an agent's client to go through its motions."""

import json
import re
from typing import Any

from burrstone.serving.engine.schema_example import schema_example

# Turns as ChatML templates write them, tools and their results as Hermes-style templates do.
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)
_TOOL_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_NUM_ECHOED_WORDS = 12


def default_answer(prompt: str) -> str:
    """Calls a tool after a user's turn, quotes a tool's results, gives JSON when asked to, else repeats the last words."""
    last = last_turn(prompt)
    results = _TOOL_RESPONSE.findall(last)
    if results:
        return f"The tool answered: {' '.join(results)}"
    tools = tool_schemas(prompt)
    if tools:
        name = next((name for name in tools if re.search(rf"\b{re.escape(name)}\b", last)), next(iter(tools)))
        call = {"name": name, "arguments": schema_example(tools[name], last)}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    if "json" in last.lower():
        return json.dumps({"answer": "yes"})
    return f"You said: {' '.join(last.split()[-_NUM_ECHOED_WORDS:])}"


def last_turn(prompt: str) -> str:
    """The text of the last turn, or the whole prompt where it has no turns."""
    turns = _TURN.findall(prompt)
    return str(turns[-1][1]) if turns else prompt


def tool_schemas(prompt: str) -> dict[str, Any]:
    """The parameters of the tools that the prompt offers, by name."""
    found = _TOOLS.search(prompt)
    if found is None:
        return {}
    schemas: dict[str, Any] = {}
    for line in found[1].splitlines():
        tool = json.loads(line)
        function = tool.get("function", tool)
        schemas[function["name"]] = function.get("parameters") or {}
    return schemas
