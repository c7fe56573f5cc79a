"""Fields of trace files, one row at a time; what is wrong is told with the file, the line and the field."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TextIO

from burrstone.batching.errors import UsageError


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One object of a file. `within` goes before the names of its fields."""

    path: Path
    line: int
    values: Mapping[str, Any]
    within: str = ""

    def read(self, field: str, parse: Callable[[Any], Any], rule: str) -> Any:
        """Raises UsageError where the field is missing or not as the rule says."""
        if field not in self.values:
            self.fail(f"{field} is missing; it must be {rule}")
        try:
            return parse(self.values[field])
        except (ValueError, TypeError):
            self.fail(f"{field} must be {rule}, got {self.values[field]!r}")

    def read_or(self, field: str, parse: Callable[[Any], Any], rule: str, default: Any) -> Any:
        """As `read`; the default where the field is missing or null."""
        return default if self.values.get(field) is None else self.read(field, parse, rule)

    def refuse_all_but(self, known: set[str]) -> None:
        """Raises UsageError for a field that nobody would heed."""
        for field in self.values:
            if field not in known:
                self.fail(f"{field} is not simulated; known are {', '.join(sorted(known))}")

    def fail(self, problem: str) -> NoReturn:
        """Raises UsageError: where, and what is wrong."""
        raise UsageError(f"{self.path}:{self.line}: {self.within}{problem}")


def open_text(path: Path) -> TextIO:
    """Raises UsageError where it cannot be read."""
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def json_lines(path: Path) -> Iterator[TraceRow]:
    """The objects of a JSONL file; empty lines are passed over."""
    with open_text(path) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except ValueError as error:
                raise UsageError(f"{path}:{line}: not JSON: {error}") from None
            if not isinstance(values, dict):
                raise UsageError(f"{path}:{line}: must be an object, got {text.strip()[:40]}")
            yield TraceRow(path, line, values)


# The parsers raise ValueError or TypeError for what they do not take.


def number(value: Any) -> float:
    """A finite number >= 0."""
    parsed = float(value)
    if isinstance(value, bool) or not 0 <= parsed < float("inf"):
        raise ValueError(value)
    return parsed


def count_or_zero(value: Any) -> int:
    """An integer >= 0, perhaps as text."""
    parsed = int(value)
    if isinstance(value, bool) or parsed != float(value) or parsed < 0:
        raise ValueError(value)
    return parsed


def count(value: Any) -> int:
    """An integer >= 1, perhaps as text."""
    parsed = count_or_zero(value)
    if parsed == 0:
        raise ValueError(value)
    return parsed


def numbers(value: Any) -> list[float]:
    """A list of finite numbers >= 0."""
    return [number(one) for one in _list(value)]


def hash_ids(value: Any) -> list[int]:
    """A list of integers >= 0 that fit into 64 bits."""
    ids = [count_or_zero(one) for one in _list(value)]
    if any(one >= 1 << 64 for one in ids):
        raise ValueError(value)
    return ids


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def seconds(value: Any) -> float:
    """A date and time, in seconds since the epoch as if it were UTC."""
    text = str(value).removesuffix("+00:00")
    whole, _, decimals = text.partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + (float(f"0.{decimals}") if decimals else 0.0)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value
