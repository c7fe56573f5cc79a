"""A matrix of checks: each cell runs by itself and prints one line of JSON, {"name", "outcome", "detail"}."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel

Cell = Callable[[], Awaitable[object]]
_TIMEOUT_S = 120


class Weather(BaseModel):
    """Get the weather of a city."""

    city: Literal["Paris", "Rome"]


def base_url() -> str:
    return sys.argv[1]


def model_name() -> str:
    return sys.argv[2]


def run(cells: dict[str, Cell]) -> None:
    """Run every cell in turn; a cell passes when it raises nothing."""
    asyncio.run(_run(cells))


def expect(truth: object, what: str) -> None:
    """Raises AssertionError saying what was expected."""
    if not truth:
        raise AssertionError(f"expected {what}")


async def _run(cells: dict[str, Cell]) -> None:
    for name, cell in cells.items():
        outcome, detail = "pass", ""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await cell()
        except Exception as error:  # noqa: BLE001  a cell may fail in any way, and the others run on
            outcome, detail = "fail", f"{type(error).__name__}: {error}"
        print(json.dumps({"name": name, "outcome": outcome, "detail": detail}), flush=True)
