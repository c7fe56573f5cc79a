"""What the simulator must show, and whether it does: one module a target, named after its topic, whose `run(context)` returns
its rows by name, `<number>-<name>`."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NotRequired, TypedDict

from burrstone.batching.errors import UsageError

TRACES_ENV = "BURRSTONE_TRACES"
# Number of the target -> its module beside this one.
TOPICS: Mapping[int, str] = {
    3: "gpu",
    4: "scale",
    5: "slo",
    6: "fairness",
    7: "routing",
    8: "agents",
    9: "shapes",
}


class Row(TypedDict):
    """One figure beside what it must be. `ok` is None where it was not measured, and `skipped` says why."""

    value: float | None
    goal: str
    ok: bool | None
    skipped: NotRequired[str]


class Skipped(Exception):
    """A target cannot be measured here; the message says what it lacks and how to give it."""


def _nowhere(_share: float, _text: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Context:
    """What a target may use. `progress(share, text)`: how much of this target is done, 0 to 1, and what comes now."""

    traces: Path | None = None
    progress: Callable[[float, str], None] = _nowhere

    def trace(self, name: str) -> Path:
        """A file or folder of the trace folder. Raises Skipped where it is absent."""
        if self.traces is None:
            raise Skipped(f"needs {name}: name the folder of traces with --traces or {TRACES_ENV}")
        path = self.traces / name
        if not path.exists():
            raise Skipped(f"needs {name}, which is not in {self.traces}")
        return path


Run = Callable[[Context], dict[str, Row]]


def at_least(value: float, goal: float) -> Row:
    """A row that is met by value >= goal."""
    return {"value": float(value), "goal": f">= {goal:g}", "ok": bool(value >= goal)}


def at_most(value: float, goal: float) -> Row:
    """A row that is met by value <= goal."""
    return {"value": float(value), "goal": f"<= {goal:g}", "ok": bool(value <= goal)}


def skipped(goal: str, reason: str) -> Row:
    """A row that could not be measured. goal: as other rows have it, such as `>= 1.5`."""
    return {"value": None, "goal": goal, "ok": None, "skipped": reason}


def traces_folder(given: Path | None) -> Path | None:
    """The folder of traces: as given, else by the environment, else none. Raises UsageError if it is no folder."""
    named = given or (Path(os.environ[TRACES_ENV]) if os.environ.get(TRACES_ENV) else None)
    if named is not None and not named.is_dir():
        raise UsageError(f"--traces ({TRACES_ENV}): {named} is no folder; name the one that holds the trace files")
    return named


def runs(only: tuple[int, ...] = ()) -> Iterator[tuple[str, Run]]:
    """The targets in order as (`<number>-<topic>`, run); all of them, or `only` these numbers. Raises UsageError."""
    for number in only:
        if number not in TOPICS:
            known = ", ".join(f"{number} {topic}" for number, topic in TOPICS.items())
            raise UsageError(f"--only {number}: no such target; there are {known}")
    for number, topic in TOPICS.items():
        if not only or number in only:
            yield f"{number}-{topic}", import_module(f"{__package__}.{topic}").run


def measure(name: str, run: Run, context: Context) -> dict[str, Row]:
    """The rows of one target; a single one of its name, which says why, where all of it is skipped."""
    try:
        return run(context)
    except Skipped as reason:
        return {name: skipped("measured", str(reason))}


def met(rows: Mapping[str, Row]) -> bool:
    """Whether no measured row misses its goal."""
    return all(row["ok"] is not False for row in rows.values())
