"""Values of the simulator's flags, checked where they are read: what is wrong names the flag, the rule and the fix."""

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T", int, float)


class Flags:
    """A parser, or a group of its flags, that keeps the names of all it has been given."""

    def __init__(self, parser: argparse.ArgumentParser, group: Any = None, names: list[str] | None = None) -> None:
        self.parser = parser
        self.names = [] if names is None else names
        self._group = parser if group is None else group

    def add(self, *names: str, **options: Any) -> None:
        """As ArgumentParser.add_argument."""
        self.names += self._group.add_argument(*names, **options).option_strings

    def group(self, title: str) -> "Flags":
        """Flags under a heading of their own."""
        return Flags(self.parser, self.parser.add_argument_group(title), self.names)


def positive(what: str) -> Callable[[str], float]:
    """A number > 0; `what` says what it counts."""
    return _number(float, lambda value: 0 < value < float("inf"), f"a number > 0: {what}")


def at_least_zero(what: str) -> Callable[[str], float]:
    """A number >= 0."""
    return _number(float, lambda value: 0 <= value < float("inf"), f"a number >= 0: {what}")


def fraction(what: str) -> Callable[[str], float]:
    """A number between 0 and 1, neither of them."""
    return _number(float, lambda value: 0 < value < 1, f"between 0 and 1: {what}, such as 0.95")


def count(what: str, least: int = 1) -> Callable[[str], int]:
    """An integer >= least."""
    return _number(int, lambda value: value >= least, f"an integer >= {least}: {what}")


def numbers(what: str) -> Callable[[str], list[float]]:
    """Numbers > 0 with commas between them, in rising order."""
    one = positive(what)

    def parse(text: str) -> list[float]:
        return sorted({one(part) for part in text.split(",")})

    return parse


def seeds(text: str) -> list[int]:
    """`1,2,3`: different integers >= 0."""
    values = [count("seeds are such as 1,2,3", least=0)(part) for part in text.split(",")]
    if len(set(values)) != len(values):
        raise argparse.ArgumentTypeError(f"{text!r} must be different integers: a seed twice is the same run twice")
    return values


def names(text: str) -> list[str]:
    """`fcfs,slo`: names with commas between them."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} must name at least one, such as fcfs,slo")
    return found


def knob(text: str) -> tuple[str, float]:
    """`aging_s=30`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, such as aging_s=30")
    return name.strip(), at_least_zero(f"the value of {name.strip()}")(value)


def failure(text: str) -> tuple[float, float, int]:
    """`60:30:2`: (at_s, for_s, engines)."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise argparse.ArgumentTypeError(f"{text!r} must be AT_S:FOR_S[:ENGINES], such as 60:30:2")
    at_s, for_s = (at_least_zero("seconds")(part) for part in parts[:2])
    return at_s, for_s, count("engines")(parts[2]) if len(parts) == 3 else 1


def _number(kind: type[_T], ok: Callable[[_T], bool], rule: str) -> Callable[[str], _T]:
    def parse(text: str) -> _T:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not ok(value):
            raise argparse.ArgumentTypeError(f"{text.strip()!r} must be {rule}")
        return value

    return parse
