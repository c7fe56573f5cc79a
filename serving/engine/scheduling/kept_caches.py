"""KV caches of finished calls, kept for their programs' next calls: until they expire, the call comes, or somebody needs
the room. The rules are the simulator's: a running request breaks any, the soonest to expire first; a waiting request
breaks only those of programs that began after its own, unless nothing runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from burrstone.serving.engine.scheduling.program_book import Program


@dataclass(slots=True, eq=False)
class Kept:
    """`blocks`: vLLM's, in the order of the sequence, referenced once for us."""

    program: Program
    expires_s: float
    blocks: list[Any] = field(repr=False)

    @property
    def due_s(self) -> float:
        """When it goes; not while the program's next call waits for it."""
        return math.inf if self.program.waiting else self.expires_s


class KeptCaches:
    """Of one engine, over vLLM's block pool of a single KV cache group. `num_blocks`: held for nobody who runs."""

    def __init__(self, manager: Any, block_tokens: int) -> None:
        self._pool = manager.block_pool
        self._allocate: Callable[..., Any] = manager.allocate_slots
        self._block_tokens = block_tokens
        self._kept: list[Kept] = []

    @property
    def num_blocks(self) -> int:
        return sum(len(kept.blocks) for kept in self._kept)

    def keep(self, program: Program, expires_s: float, blocks: list[Any]) -> None:
        """Take over a finished call's blocks. A program has one kept cache, its latest."""
        old = self._of(program)
        if old is not None:
            self._release(old)
        self._kept.append(Kept(program, expires_s, blocks))

    def drop_expired(self, now_s: float) -> None:
        """Release what has been kept long enough, soonest first."""
        while self._kept:
            first = min(self._kept, key=lambda kept: kept.due_s)
            if first.due_s > now_s:
                return
            self._release(first)

    def release(self, program: Program) -> None:
        """Release what is kept for the program, if anything is."""
        kept = self._of(program)
        if kept is not None:
            self._release(kept)

    def release_all(self) -> None:
        """Release every one, even if one fails; then the last failure is raised."""
        failure: Exception | None = None
        while self._kept:
            try:
                self._release(self._kept[-1])
            except Exception as error:  # noqa: BLE001  raised below
                failure = error
        if failure is not None:
            raise failure

    def allocate_running(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's allocate_slots for a running request, breaking kept caches before anybody is preempted."""
        found = self._allocate(request, *args, **kwargs)
        while found is None and self._kept:
            self._release(self._soonest(self._kept))
            found = self._allocate(request, *args, **kwargs)
        return found

    def allocate_waiting(
        self, program: Program | None, younger_than_s: float, request: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The same for a waiting request: its own program's cache is given up for it, or kept on if it is not admitted.

        younger_than_s: caches of programs that began later may be broken; -inf for all, where nothing runs.
        """
        own = None if program is None else self._of(program)
        lent: list[Any] = []
        if own is not None:
            # No longer listed, so that whatever fails they are not freed twice.
            lent, own.blocks = own.blocks, []
            self._pool.free_blocks(reversed(lent))
        admitted = None
        try:
            admitted = self._allocate(request, *args, **kwargs)
            if admitted is None and self._make_room(younger_than_s, own, request, kwargs.get("new_computed_blocks")):
                admitted = self._allocate(request, *args, **kwargs)
        finally:
            if own is not None and admitted is None:
                # Nothing was allocated meanwhile, so the blocks still hold what they held.
                self._pool.touch(lent)
                own.blocks = lent
            elif own is not None:
                self._kept.remove(own)
        return admitted

    def _make_room(self, younger_than_s: float, own: Kept | None, request: Any, computed: Any) -> bool:
        """Break caches for a request that lacks blocks, if that can be enough."""
        found = [] if computed is None else computed.blocks[0]
        idle = sum(block.ref_cnt == 0 for block in found)
        missing = math.ceil(request.num_tokens / self._block_tokens) - len(found) + idle
        missing -= self._pool.get_num_free_blocks()
        if sum(len(kept.blocks) for kept in self._breakable(younger_than_s, own)) < missing:
            return False
        wanted = self._pool.get_num_free_blocks() + missing
        while self._pool.get_num_free_blocks() < wanted and (breakable := self._breakable(younger_than_s, own)):
            self._release(self._soonest(breakable))
        return True

    def _breakable(self, younger_than_s: float, own: Kept | None) -> list[Kept]:
        return [kept for kept in self._kept if kept is not own and kept.program.arrival_s > younger_than_s]

    @staticmethod
    def _soonest(kept: list[Kept]) -> Kept:
        return min(kept, key=lambda one: one.due_s)

    def _of(self, program: Program) -> Kept | None:
        return next((kept for kept in self._kept if kept.program is program), None)

    def _release(self, kept: Kept) -> None:
        # Tail first, so that the prefix survives longest.
        self._kept.remove(kept)
        self._pool.free_blocks(reversed(kept.blocks))
