"""A short text that a regex or an EBNF grammar accepts."""

import itertools
import re
from collections.abc import Callable, Mapping
from re import _parser as parser  # type: ignore[attr-defined]  # the standard library's own regex parser
from typing import Any

_PRINTABLE = "a0A" + "".join(map(chr, range(32, 127)))
_MAX_EXTRA_REPEATS = 64


def regex_example(pattern: str, min_chars: int = 1) -> str:
    """A short text that the whole pattern matches, of `min_chars` where it can be so long. Raises ValueError if none is found."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {pattern!r}: {error}") from error
    parsed = parser.parse(pattern)
    found: str | None = None
    for extra in range(_MAX_EXTRA_REPEATS):
        text = _RegexWalk(extra).text(parsed)
        if compiled.fullmatch(text) and (found is None or len(text) > len(found)):
            found = text
        if found is not None and len(found) >= min_chars:
            break
    if found is None:
        raise ValueError(f"no example found for the regular expression {pattern!r}")
    return found


def ebnf_example(grammar: str) -> str:
    """The shortest text of a grammar as xgrammar prints it: `name ::= body`, a rule a line, starting at `root`."""
    rules = dict(_rule(line) for line in grammar.split("\n") if line.strip())
    shortest: dict[str, str] = {}
    # A rule's text can only shrink, so this ends; a rule that never gets one has no finite text.
    changed = True
    while changed:
        changed = False
        for name, body in rules.items():
            text = body(shortest)
            if text is not None and (name not in shortest or len(text) < len(shortest[name])):
                shortest[name] = text
                changed = True
    if "root" not in shortest:
        raise ValueError("the grammar has no finite text")
    return shortest["root"]


class _RegexWalk:
    """One pass over a parsed regex; each repeat is taken `extra` times more than it must."""

    def __init__(self, extra: int) -> None:
        self._extra = extra
        self._groups: dict[int, str] = {}

    def text(self, parsed: Any) -> str:
        return "".join(self._one(str(operation), argument) for operation, argument in parsed)

    def _one(self, name: str, argument: Any) -> str:
        match name:
            case "LITERAL":
                return chr(argument)
            case "NOT_LITERAL":
                return next(char for char in _PRINTABLE if ord(char) != argument)
            case "ANY":
                return "a"
            case "IN":
                return _class_member(argument)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                low, high, inner = argument
                times = min(low + self._extra, high if isinstance(high, int) else low + self._extra)
                return "".join(self.text(inner) for _ in range(times))
            case "SUBPATTERN":
                text = self.text(argument[3])
                if argument[0] is not None:
                    self._groups[argument[0]] = text
                return text
            case "GROUPREF":
                return self._groups.get(argument, "")
            case "ATOMIC_GROUP":
                return self.text(argument)
            case "BRANCH":
                return self.text(argument[1][0])
            case _:  # anchors and look-around: the caller checks the text against the whole pattern
                return ""


def _class_member(members: Any) -> str:
    negated = str(members[0][0]) == "NEGATE"
    positive = members[1:] if negated else members
    own = [chr(value if str(name) == "LITERAL" else value[0]) for name, value in positive if str(name) != "CATEGORY"]
    for char in itertools.chain(_PRINTABLE if negated else (), own, _PRINTABLE, "\n", "\u00e9"):
        if any(_is_member(char, str(name), value) for name, value in positive) is not negated:
            return char
    raise ValueError("no character found for a class of a regular expression")


def _is_member(char: str, name: str, value: Any) -> bool:
    if name == "LITERAL":
        return char == chr(value)
    if name == "RANGE":
        return bool(value[0] <= ord(char) <= value[1])
    category = str(value).removeprefix("CATEGORY_")
    shorthand = {"DIGIT": r"\d", "WORD": r"\w", "SPACE": r"\s"}[category.removeprefix("NOT_")]
    return (re.match(shorthand, char) is not None) is not category.startswith("NOT_")


# What a part of a rule makes of the texts known so far: its own shortest text, or None while it has none.
_Body = Callable[[Mapping[str, str]], str | None]
_LITERAL = re.compile(r'"((?:\\.|[^"\\])*)"')
_CLASS = re.compile(r"\[(\^?)((?:\\.|[^\]\\])*)\]")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_COUNT = re.compile(r"\{(\d+)(?:,\s*(-?\d*))?\}")


def _rule(line: str) -> tuple[str, _Body]:
    name, separator, body = line.partition(" ::= ")
    if not separator:
        raise ValueError(f"not a grammar rule: {line!r}")
    return name.strip(), _RuleReader(body).read()


class _RuleReader:
    """Recursive descent over one rule's body."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def read(self) -> _Body:
        body = self._choice()
        # A look-ahead, `(=...)`, ends a rule; its own text comes from whatever follows the rule.
        if self._at < len(self._source) and not self._source.startswith("(=", self._at):
            raise ValueError(f"cannot read the grammar at {self._source[self._at :]!r}")
        return body

    def _choice(self) -> _Body:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())

        def shortest(known: Mapping[str, str]) -> str | None:
            texts = [text for text in (option(known) for option in options) if text is not None]
            return min(texts, key=len, default=None)

        return shortest

    def _sequence(self) -> _Body:
        parts: list[_Body] = []
        while (part := self._repeated()) is not None:
            parts.append(part)

        def joined(known: Mapping[str, str]) -> str | None:
            texts = [part(known) for part in parts]
            return None if None in texts else "".join(text or "" for text in texts)

        return joined

    def _repeated(self) -> _Body | None:
        part = self._atom()
        if part is None:
            return None
        count = self._match(_COUNT)
        times = int(count[1]) if count else 0 if self._take("*") or self._take("?") else 1
        self._take("+")
        return (lambda known: "" if times == 0 else _times(part(known), times)) if times != 1 else part

    def _atom(self) -> _Body | None:
        self._skip_space()
        if self._source.startswith("(=", self._at):
            return None
        if self._take("("):
            inner = self._choice()
            if not self._take(")"):
                raise ValueError("the grammar has an open bracket")
            return inner
        if (literal := self._match(_LITERAL)) is not None:
            text = _unescape(literal[1])
            return lambda known: text
        if (members := self._match(_CLASS)) is not None:
            # xgrammar writes a class as a regular expression does.
            char = regex_example(f"[{members[1]}{members[2]}]")
            return lambda known: char
        if (name := self._match(_NAME)) is not None:
            rule = name[0]
            return lambda known: known.get(rule)
        return None

    def _skip_space(self) -> None:
        while self._at < len(self._source) and self._source[self._at] == " ":
            self._at += 1

    def _take(self, char: str) -> bool:
        self._skip_space()
        taken = self._source.startswith(char, self._at)
        self._at += len(char) if taken else 0
        return taken

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._source, self._at)
        if found is not None:
            self._at = found.end()
        return found


def _times(text: str | None, times: int) -> str | None:
    return None if text is None else text * times


_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SHORT_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}


def _unescape(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found[1] or found[2] or found[3]
        return chr(int(code, 16)) if code else _SHORT_ESCAPES.get(found[4], found[4])

    return _ESCAPE.sub(one, text)
