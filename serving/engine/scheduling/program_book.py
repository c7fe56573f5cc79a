"""Names become small integers: tenants, which are rows of a table that stays small, and agent programs."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

MAX_TENANTS = 1024
MAX_PROGRAMS = 4096
# A name that comes back after this long is another program's: a client may have one session id for all it ever does.
MIN_FORGET_S = 600.0


class TenantBook:
    """Tenant name -> row. Rows of tenants that are idle longest are given to new ones; with none idle, row 0 is shared."""

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        self._max = max_tenants
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._active = [0] * max_tenants

    def enter(self, name: str) -> tuple[int, bool]:
        """(the tenant's row, whether it was another's before and must be cleared). One more request of it is here."""
        row = self._rows.get(name)
        cleared = False
        if row is not None:
            self._rows.move_to_end(name)
        elif len(self._rows) < self._max:
            row = self._rows[name] = len(self._rows)
        else:
            idle = next((known for known, taken in self._rows.items() if self._active[taken] == 0), None)
            cleared = idle is not None
            row = 0 if idle is None else self._rows.pop(idle)
            if cleared:
                self._rows[name] = row
        self._active[row] += 1
        return row, cleared

    def leave(self, row: int) -> None:
        """One of its requests has gone."""
        self._active[row] -= 1


@dataclass(slots=True, eq=False)
class Program:
    """`waiting`, `running`: its calls in the engine. `last_end_s`: when one finished last, nan before; `seen_s`: came."""

    number: int
    arrival_s: float
    waiting: int = 0
    running: int = 0
    last_end_s: float = math.nan
    seen_s: float = -math.inf

    @property
    def busy(self) -> bool:
        return self.waiting + self.running > 0


class ProgramBook:
    """(tenant name, program id) -> program: those with calls in the engine, and the ones that were seen last.

    Ids are the clients', so each tenant has its own. A program that was idle for over `forget_s` begins anew.
    """

    def __init__(self, max_programs: int = MAX_PROGRAMS, forget_s: float = MIN_FORGET_S) -> None:
        self._max = max_programs
        self._forget_s = forget_s
        self._programs: OrderedDict[tuple[str, str], Program] = OrderedDict()
        self._next = 0

    def enter(self, tenant: str, program_id: str, arrival_s: float) -> Program:
        """The program, known or new."""
        key = (tenant, program_id)
        program = self._programs.get(key)
        if program is not None and not program.busy:
            last_s = program.seen_s if math.isnan(program.last_end_s) else max(program.seen_s, program.last_end_s)
            if arrival_s - last_s > self._forget_s:
                del self._programs[key]
                program = None
        if program is None:
            self._make_room()
            program = self._programs[key] = Program(self._next, arrival_s)
            self._next += 1
        else:
            self._programs.move_to_end(key)
        program.seen_s = max(program.seen_s, arrival_s)
        return program

    def idle(self, keys: Iterable[tuple[str, str]]) -> list[Program]:
        """Those of them that are known and have no call in the engine."""
        known = (self._programs.get((tenant, program_id)) for tenant, program_id in keys)
        return [program for program in known if program is not None and not program.busy]

    def _make_room(self) -> None:
        excess = len(self._programs) + 1 - self._max
        idle = (key for key, program in self._programs.items() if not program.busy)
        for key in list(islice(idle, max(excess, 0))):
            del self._programs[key]
