"""Stored responses of one replica, invisible to other tenants: bounded by number, bytes and age.

Room is made at the cost of the tenant that holds the most, its least recently used first.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from burrstone.batching.errors import NotFound
from burrstone.serving.api.types import Event, JsonObject

_MAX_RESPONSES = 1000
_MAX_BYTES = 64 * 2**20
_TTL_S = 24 * 3600.0


@dataclass(slots=True)
class StoredResponse:
    """`history`: chat messages up to, but without, the answer. `streamed`: `events` are kept for later readers."""

    tenant: str
    response: JsonObject
    input_items: list[JsonObject]
    history: list[JsonObject] = field(default_factory=list)
    streamed: bool = False
    events: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    num_bytes: int = 0
    stored_s: float = 0.0
    item_ids: tuple[str, ...] = ()  # as they were when it was put; the response changes while it runs

    @property
    def finished(self) -> bool:
        return self.response["status"] not in ("queued", "in_progress")

    def announce(self) -> None:
        """Wake whoever waits for the next event or status."""
        self.changed.set()
        self.changed = asyncio.Event()


class ResponseStore:
    """In memory, for one replica; it is lost when the replica is."""

    def __init__(
        self,
        max_responses: int = _MAX_RESPONSES,
        max_bytes: int = _MAX_BYTES,
        ttl_s: float = _TTL_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._now_s = now_s
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._items: dict[tuple[str, str], tuple[str, JsonObject]] = {}  # (tenant, item id) -> (response id, item)
        self._num_bytes = 0

    def put(self, stored: StoredResponse) -> None:
        """Keep it, or keep its new state. Running responses are never the ones dropped."""
        response_id = stored.response["id"]
        self._forget(response_id)
        stored.stored_s = self._now_s()
        stored.num_bytes = _size(stored)
        self._stored[response_id] = stored
        self._num_bytes += stored.num_bytes
        items = [*stored.input_items, *stored.response["output"]]
        stored.item_ids = tuple(item["id"] for item in items)
        self._items |= {(stored.tenant, item["id"]): (response_id, item) for item in items}
        self._make_room(response_id)

    def append(self, stored: StoredResponse, event: Event) -> None:
        """Keep one more event of a running response; it counts at once, unless the response was deleted meanwhile."""
        stored.events.append(event)
        response_id = stored.response["id"]
        if self._stored.get(response_id) is stored:
            num_bytes = len(msgspec.json.encode(event.data))
            stored.num_bytes += num_bytes
            self._num_bytes += num_bytes
            if self._num_bytes > self._max_bytes:
                self._make_room(response_id)

    def refresh(self, stored: StoredResponse) -> None:
        """Keep the new state of a response, unless it was deleted meanwhile."""
        if stored.response["id"] in self._stored:
            self.put(stored)

    def get(self, response_id: str, tenant: str) -> StoredResponse:
        """Raises NotFound for an id that is unknown, dropped, or another tenant's."""
        stored = self._stored.get(response_id)
        if stored is not None and self._expired(stored):
            self._forget(response_id)
            stored = None
        if stored is None or stored.tenant != tenant:
            raise NotFound(
                f"Response with id '{response_id[:64]}' not found.", param="response_id", code="response_not_found"
            )
        self._stored.move_to_end(response_id)
        return stored

    def find_item(self, item_id: str, tenant: str) -> JsonObject | None:
        """An input or output item of a finished response that is still stored."""
        found = self._items.get((tenant, item_id))
        if found is None or self._expired(self._stored[found[0]]):
            return None
        return found[1]

    def delete(self, response_id: str, tenant: str) -> StoredResponse:
        stored = self.get(response_id, tenant)
        self._forget(response_id)
        return stored

    def _make_room(self, newest_id: str) -> None:
        for old_id, old in list(self._stored.items()):
            if self._expired(old):
                self._forget(old_id)
        while len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes:
            victim_id = self._next_out(newest_id)
            if victim_id is None:
                return
            self._forget(victim_id)

    def _next_out(self, newest_id: str) -> str | None:
        """What to drop: by bytes when those are the trouble, by number otherwise."""
        by_bytes = self._num_bytes > self._max_bytes
        held: Counter[str] = Counter()
        oldest: dict[str, str] = {}
        for response_id, stored in self._stored.items():
            held[stored.tenant] += stored.num_bytes if by_bytes else 1
            if stored.finished and response_id != newest_id:
                oldest.setdefault(stored.tenant, response_id)
        return oldest[max(oldest, key=held.__getitem__)] if oldest else None

    def _expired(self, stored: StoredResponse) -> bool:
        return stored.finished and self._now_s() - stored.stored_s > self._ttl_s

    def _forget(self, response_id: str) -> None:
        stored = self._stored.pop(response_id, None)
        if stored is None:
            return
        self._num_bytes -= stored.num_bytes
        for item_id in stored.item_ids:
            key = (stored.tenant, item_id)
            # A later response may have been sent the same item; then it is that one's.
            if key in self._items and self._items[key][0] == response_id:
                del self._items[key]


def _size(stored: StoredResponse) -> int:
    events = [event.data for event in stored.events]
    return len(msgspec.json.encode([stored.response, stored.input_items, stored.history, events]))
