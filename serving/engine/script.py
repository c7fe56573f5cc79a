"""What the scripted engine answers: rules that match the prompt, and a default that suits agent clients."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from burrstone.serving.config import ConfigError
from burrstone.serving.engine.schema_example import schema_example

_TURN = re.compile(r"<\|im_start\|>(\w+)\n(?:(?!<\|im_start\|>).)*?<\|im_end\|>\n<\|im_start\|>assistant\n$", re.DOTALL)
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_TOOLS = re.compile(r"<tools>\n(.*?)</tools>", re.DOTALL)
_TOOL_RESPONSE = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rule:
    """The first rule whose `match` is found in the prompt answers. `tokens` are raw ids and win over `text`."""

    match: str
    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: Literal["stop", "length", "error"] = "stop"
    delay_ms: float = 0.0
    tokens_per_step: int = 1
    hang_after: int | None = None  # stops producing after so many tokens, until aborted
    die_after: int | None = None  # the engine dies after so many tokens
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Script:
    """`delay_ms` paces answers that no rule gives."""

    rules: tuple[Rule, ...] = ()
    delay_ms: float = 0.0

    def rule_for(self, prompt: str) -> Rule | None:
        return next((rule for rule in self.rules if re.search(rule.match, prompt)), None)


def load_script(path: Path | None) -> Script:
    """A script file, or the empty script. Raises ConfigError naming the key that is wrong."""
    if path is None:
        return Script()
    try:
        loaded = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"engine.script: cannot read {path}: {error}") from error
    _only_known(loaded, {"rules", "delay_ms"}, str(path))
    rules = []
    for number, rule in enumerate(loaded.get("rules", [])):
        _only_known(rule, {field.name for field in fields(Rule)}, f"{path}: rules[{number}]")
        if "match" not in rule:
            raise ConfigError(f"{path}: rules[{number}] needs `match`")
        rules.append(Rule(**(rule | {"tokens": tuple(rule.get("tokens", ()))})))
    return Script(tuple(rules), float(loaded.get("delay_ms", 0.0)))


def default_answer(prompt: str) -> str:
    """Calls the first tool after a user turn, quotes a tool's result, otherwise repeats what the user said."""
    turns = _TURN.findall(prompt)
    last = turns[-1][1] if turns else prompt
    responses = _TOOL_RESPONSE.findall(last)
    if responses:
        return f"The tool answered: {responses[-1]}"
    tools = _TOOLS.search(prompt)
    if tools is not None:
        call = {"name": _first_tool(tools[1]), "arguments": _arguments(tools[1])}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    if "json" in last.lower():
        return json.dumps({"answer": "yes"})
    return f"You said: {' '.join(last.split()[-12:])}"


def _first_tool(listing: str) -> str:
    return str(json.loads(listing.splitlines()[0])["function"]["name"])


def _arguments(listing: str) -> Any:
    return schema_example(json.loads(listing.splitlines()[0])["function"].get("parameters", {}))


def _only_known(values: Any, known: set[str], where: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping")
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
