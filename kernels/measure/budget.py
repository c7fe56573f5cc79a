"""How long a run may take: what is left is split evenly among what is still to be done."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Budget:
    """From when it is made."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "begin", self.clock())

    @property
    def spent_s(self) -> float:
        return self.clock() - self.begin

    @property
    def left_s(self) -> float:
        return self.seconds - self.spent_s

    def share_s(self, count: int) -> float:
        """What each of `count` that are still to be done may take."""
        return max(0.0, self.left_s) / max(1, count)
