"""What the scripted engine answers: rules that match the prompt, and how far a request lets an answer go. No vLLM here."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import count, cycle
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from burrstone.serving.config import ConfigError

Finish = Literal["stop", "length", "error"]
Fault = Literal["hang", "die"]
_FAULT_KEYS = ("fail_after", "hang_after", "die_after")


@dataclass(frozen=True, slots=True)
class Rule:
    """How to answer a prompt in which `match` is found. Without `text` and `tokens` the engine's default answer is given."""

    match: str
    text: str | None = None
    tokens: tuple[int, ...] = ()  # raw ids in place of a text
    finish: Finish = "stop"
    delay_ms: float = 0.0  # before every step
    tokens_per_step: int = 1
    logprob: float = -0.1  # of every token
    cached_tokens: int = 0  # of the prompt
    fail_after: int | None = None  # the request fails after so many tokens
    hang_after: int | None = None  # nothing more comes after so many tokens, until the request is aborted
    die_after: int | None = None  # the whole engine dies after so many tokens
    queue_full: bool = False  # the engine refuses the request


@dataclass(frozen=True, slots=True)
class Script:
    """Rules in order, and the pace of answers that no rule gives."""

    rules: tuple[Rule, ...] = ()
    delay_ms: float = 0.0

    def rule_for(self, prompt: str) -> Rule:
        """The first rule whose `match` is found in the prompt, or the default rule."""
        found = next((rule for rule in self.rules if re.search(rule.match, prompt)), None)
        return found or Rule(match="", delay_ms=self.delay_ms)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a request makes the model stop. `eos_token_id` ends it unless `ignore_eos`."""

    max_tokens: int
    eos_token_id: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Replay:
    """The tokens to send, then how the request ends: finished, or not at all because of a fault."""

    tokens: tuple[int, ...]
    finish: Finish | None = None
    stop_token_id: int | None = None
    fault: Fault | None = None


def load_script(path: Path | None) -> Script:
    """A script file, or the empty script. Raises ConfigError naming the key that is wrong."""
    if path is None:
        return Script()
    try:
        loaded = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"engine.script: cannot read {path}: {error}") from error
    return parse_script({} if loaded is None else loaded, str(path))


def parse_script(loaded: Any, where: str) -> Script:
    """A script from its YAML value. Raises ConfigError naming the key that is wrong."""
    _only_known(loaded, {entry.name for entry in fields(Script)}, where)
    rules = loaded.get("rules", [])
    if not isinstance(rules, list):
        raise ConfigError(f"{where}: rules must be a list")
    parsed = tuple(_rule(rule, f"{where}: rules[{number}]") for number, rule in enumerate(rules))
    return Script(parsed, _number(loaded, "delay_ms", where))


def replay(answer: Iterable[int], rule: Rule, limits: Limits) -> Replay:
    """What of an answer a request gets to see, by the engine's own rules for when to stop."""
    ended = _until_end(tuple(answer), rule.finish, limits)
    for key, fault in (("fail_after", None), ("hang_after", "hang"), ("die_after", "die")):
        after = getattr(rule, key)
        if after is not None and after < len(ended.tokens):
            return Replay(ended.tokens[:after], "error" if fault is None else None, fault=fault)  # type: ignore[arg-type]
    return ended


def _until_end(answer: tuple[int, ...], finish: Finish, limits: Limits) -> Replay:
    stops = limits.stop_token_ids if limits.ignore_eos else limits.stop_token_ids | {limits.eos_token_id}
    tokens: list[int] = []
    for token in _samples(answer, finish, limits, stops):
        if token in stops and len(tokens) < limits.min_tokens:
            continue
        tokens.append(token)
        if token in stops:
            return Replay(tuple(tokens), "stop", None if token == limits.eos_token_id else token)
        if len(tokens) == limits.max_tokens:
            return Replay(tuple(tokens), "length")
    return Replay(tuple(tokens), finish)


def _samples(answer: tuple[int, ...], finish: Finish, limits: Limits, stops: frozenset[int]) -> Iterator[int]:
    """A model that may not stop yet says its answer again, and again."""
    if finish != "stop":
        yield from answer
        return
    # Where the answer is nothing but stops, any other token keeps it going.
    filler = () if any(token not in stops for token in answer) else (next(i for i in count() if i not in stops),)
    yield from cycle((*answer, limits.eos_token_id, *filler))


def _rule(loaded: Any, where: str) -> Rule:
    _only_known(loaded, {entry.name for entry in fields(Rule)}, where)
    match = loaded.get("match")
    if not isinstance(match, str):
        raise ConfigError(f"{where} needs `match`, a regular expression")
    try:
        re.compile(match)
    except re.error as error:
        raise ConfigError(f"{where}: match is not a regular expression: {error}") from error
    text, tokens, finish = loaded.get("text"), loaded.get("tokens", []), loaded.get("finish", "stop")
    if text is not None and not isinstance(text, str):
        raise ConfigError(f"{where}: text must be a string")
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise ConfigError(f"{where}: tokens must be a list of token ids")
    if text is not None and "tokens" in loaded:
        raise ConfigError(f"{where}: give text or tokens, not both")
    if finish not in get_args(Finish):
        raise ConfigError(f"{where}: finish must be one of {', '.join(get_args(Finish))}")
    if sum(key in loaded for key in _FAULT_KEYS) > 1:
        raise ConfigError(f"{where}: give one of {', '.join(_FAULT_KEYS)}")
    if not isinstance(loaded.get("queue_full", False), bool):
        raise ConfigError(f"{where}: queue_full must be true or false")
    return Rule(
        match=match,
        text=text,
        tokens=tuple(tokens),
        finish=finish,
        delay_ms=_number(loaded, "delay_ms", where),
        tokens_per_step=_count(loaded, "tokens_per_step", where, at_least=1) or 1,
        logprob=_number(loaded, "logprob", where, low=-9999.0, high=0.0, default=-0.1),
        cached_tokens=_count(loaded, "cached_tokens", where) or 0,
        fail_after=_count(loaded, "fail_after", where),
        hang_after=_count(loaded, "hang_after", where),
        die_after=_count(loaded, "die_after", where),
        queue_full=loaded.get("queue_full", False),
    )


def _only_known(values: Any, known: set[str], where: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping")
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _number(
    values: dict[str, Any],
    key: str,
    where: str,
    low: float = 0.0,
    high: float = float("inf"),
    default: float = 0.0,
) -> float:
    value = values.get(key, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise ConfigError(f"{where}: {key} must be a number from {low:g} to {high:g}")
    return float(value)


def _count(values: dict[str, Any], key: str, where: str, at_least: int = 0) -> int | None:
    if key not in values:
        return None
    value = values[key]
    if type(value) is not int or value < at_least:
        raise ConfigError(f"{where}: {key} must be a whole number, at least {at_least}")
    return value
