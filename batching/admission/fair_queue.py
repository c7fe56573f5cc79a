"""Where requests wait for a seat: a line for each tenant, and the next one from the line that was served least.

Virtual token counters (Sheng et al., OSDI'24), at the gate: a tenant's counter grows by what its requests cost, divided
by its weight; what runs is counted as expected, and put right when it ends. Better priorities first; among equals the lowest counter; within a tenant first come, first served.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Waiter:
    """`sequences`: seats it needs, all at once. `cost`: tokens it is expected to take. max_concurrent: its tenant's seats."""

    seq: int
    tenant: str
    sequences: int
    prompt_tokens: int
    cost: float
    weight: float = 1.0
    priority: int = 0
    max_concurrent: int | None = None


class Ahead(NamedTuple):
    """What goes before a newcomer."""

    sequences: int
    prompt_tokens: int


class FairQueue:
    """`seats`: sequences that may run at once, None for no bound. Requests are named by their `seq`."""

    def __init__(self, seats: int | None) -> None:
        self.seats = seats
        self.running = 0  # sequences
        self.waiting = 0  # sequences
        self._lines: dict[str, dict[int, Waiter]] = {}  # tenants with somebody waiting; each line in order of arrival
        self._where: dict[int, str] = {}  # waiting seq -> tenant
        self._seated: dict[int, Waiter] = {}
        self._settled: dict[str, float] = {}  # tenant -> weighted tokens of what has ended
        self._expected: dict[str, float] = {}  # tenant -> weighted tokens of what runs
        self._seats_of: dict[str, int] = {}  # tenant -> running sequences
        self._lift: dict[int, float] = {}  # priority -> the counter of the tenant that was seated last

    def __contains__(self, seq: int) -> bool:
        return seq in self._where

    @property
    def num_seated(self) -> int:
        """Requests that run."""
        return len(self._seated)

    def service(self, tenant: str) -> float:
        """The tenant's counter: tokens per unit of weight."""
        return self._settled.get(tenant, 0.0) + self._expected.get(tenant, 0.0)

    def put(self, waiter: Waiter) -> None:
        """To the end of its tenant's line. A tenant that comes back from idle has earned no credit meanwhile."""
        tenant = waiter.tenant
        if tenant not in self._lines:
            self._settled[tenant] = max(self._settled.get(tenant, 0.0), self._floor(waiter.priority))
            self._lines[tenant] = {}
        self._lines[tenant][waiter.seq] = waiter
        self._where[waiter.seq] = tenant
        self.waiting += waiter.sequences

    def pop(self) -> Waiter | None:
        """Seat whoever is next; None when nobody waits, or the next one does not fit yet."""
        best = min(self._heads(), key=self._turn, default=None)
        if best is None or (self.seats is not None and self.running + self._needs(best) > self.seats):
            return None
        self._take_out(best.seq)
        self._seat(best)
        self._lift[best.priority] = self._settled[best.tenant]
        return best

    def remove(self, seq: int) -> bool:
        """Out of the line, as if it had never come. False when it does not wait."""
        if seq not in self._where:
            return False
        self._take_out(seq)
        return True

    def leave(self, seq: int, cost: float) -> bool:
        """It has ended, and took `cost` tokens in truth: its seats are free. False when it has no seat."""
        waiter = self._seated.pop(seq, None)
        if waiter is None:
            return False
        self.running -= self._needs(waiter)
        self._seats_of[waiter.tenant] -= self._needs(waiter)
        self._expected[waiter.tenant] -= waiter.cost / waiter.weight
        self._settled[waiter.tenant] += cost / waiter.weight
        return True

    def ahead(self, newcomer: Waiter) -> Ahead:
        """What would be seated before it if nobody else came: its own line, and of the others what costs no more."""
        own = self._lines.get(newcomer.tenant, {})
        settled = self._settled.get(newcomer.tenant, 0.0)
        start = settled if own else max(settled, self._floor(newcomer.priority))
        due = (
            start
            + self._expected.get(newcomer.tenant, 0.0)
            + sum(waiter.cost for waiter in own.values()) / newcomer.weight
        )
        sequences, prompt_tokens = 0, 0
        for tenant, line in self._lines.items():
            reached = self.service(tenant)
            for waiter in line.values():
                better = waiter.priority < newcomer.priority
                if not better and tenant != newcomer.tenant and (waiter.priority > newcomer.priority or reached > due):
                    break
                reached += waiter.cost / waiter.weight
                sequences += waiter.sequences
                prompt_tokens += waiter.prompt_tokens
        return Ahead(sequences, prompt_tokens)

    def victim(self, newcomer: Waiter) -> int | None:
        """Who should give up its place in a full queue: the last of a worse priority, or of the line furthest above the
        newcomer's share. None when the newcomer itself is the one to refuse."""
        own = (newcomer.priority, self._share(newcomer, more=newcomer.sequences))
        lasts = [next(reversed(line.values())) for line in self._lines.values()]
        worst = max(lasts, key=lambda waiter: (waiter.priority, self._share(waiter)), default=None)
        if worst is None or (worst.priority, self._share(worst)) <= own or worst.tenant == newcomer.tenant:
            return None
        return worst.seq

    def save(self) -> dict[str, Any]:
        """Counters, lines and seats as JSON values."""
        return {
            "waiting": [asdict(waiter) for line in self._lines.values() for waiter in line.values()],
            "seated": [asdict(waiter) for waiter in self._seated.values()],
            "settled": dict(self._settled),
            "expected": dict(self._expected),
            "lift": [[priority, service] for priority, service in self._lift.items()],
        }

    @classmethod
    def restored(cls, saved: Mapping[str, Any], seats: int | None) -> "FairQueue":
        """A queue that goes on where `save` was called."""
        queue = cls(seats)
        for values in saved["waiting"]:
            queue.put(Waiter(**values))
        for values in saved["seated"]:
            queue._seat(Waiter(**values))
        queue._settled, queue._expected = dict(saved["settled"]), dict(saved["expected"])
        queue._lift = {priority: service for priority, service in saved["lift"]}
        return queue

    def _seat(self, waiter: Waiter) -> None:
        self._seated[waiter.seq] = waiter
        self.running += self._needs(waiter)
        self._seats_of[waiter.tenant] = self._seats_of.get(waiter.tenant, 0) + self._needs(waiter)
        self._expected[waiter.tenant] = self._expected.get(waiter.tenant, 0.0) + waiter.cost / waiter.weight

    def _heads(self) -> Iterator[Waiter]:
        """The first of each line whose tenant may have more seats."""
        for line in self._lines.values():
            head = next(iter(line.values()))
            held = self._seats_of.get(head.tenant, 0)
            if head.max_concurrent is None or held + self._needs(head) <= head.max_concurrent:
                yield head

    def _turn(self, head: Waiter) -> tuple[int, float, int, int]:
        return head.priority, self.service(head.tenant), self._seats_of.get(head.tenant, 0), head.seq

    def _needs(self, waiter: Waiter) -> int:
        """Seats it takes: whoever wants more than there can be, takes all."""
        bounds = [bound for bound in (self.seats, waiter.max_concurrent) if bound is not None]
        return min([waiter.sequences, *bounds])

    def _floor(self, priority: int) -> float:
        """What the least served tenant whose turn it could be has had, of this priority; else the last one seated.

        What runs is left out: whoever comes while others hold the seats has had none of them. So are tenants at their
        own bound: they fall behind by their terms, and nobody who comes is owed what they did not take.
        """
        services = [self._settled[head.tenant] for head in self._heads() if head.priority == priority]
        return min(services, default=self._lift.get(priority, 0.0))

    def _share(self, waiter: Waiter, more: int = 0) -> float:
        """Sequences that its tenant has here, per unit of weight."""
        line = self._lines.get(waiter.tenant, {})
        waiting = sum(one.sequences for one in line.values())
        return (waiting + self._seats_of.get(waiter.tenant, 0) + more) / waiter.weight

    def _take_out(self, seq: int) -> None:
        tenant = self._where.pop(seq)
        line = self._lines[tenant]
        self.waiting -= line.pop(seq).sequences
        if not line:
            del self._lines[tenant]
