"""Stored responses of one replica: bounded by number and bytes, oldest out first, invisible to other tenants."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from burrstone.batching.errors import NotFound
from burrstone.serving.api.types import Event, JsonObject

_MAX_RESPONSES = 1000
_MAX_BYTES = 64 * 2**20


@dataclass(slots=True)
class StoredResponse:
    """`history`: chat messages up to and including the answer, for previous_response_id."""

    tenant: str
    response: JsonObject
    input_items: list[JsonObject]
    history: list[JsonObject] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)  # of a background stream, for a reader who comes back
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    num_bytes: int = 0

    @property
    def finished(self) -> bool:
        return self.response["status"] not in ("queued", "in_progress")

    def announce(self) -> None:
        """Wake whoever waits for the next event or status."""
        self.changed.set()
        self.changed = asyncio.Event()


class ResponseStore:
    """In memory, for one replica; it is lost when the replica is."""

    def __init__(self, max_responses: int = _MAX_RESPONSES, max_bytes: int = _MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def put(self, stored: StoredResponse) -> None:
        """Keep it, or keep its new state. Running responses are never the ones dropped."""
        response_id = stored.response["id"]
        self._forget(response_id)
        stored.num_bytes = len(msgspec.json.encode([stored.response, stored.input_items, stored.history]))
        self._stored[response_id] = stored
        self._num_bytes += stored.num_bytes
        for old_id in [key for key, value in self._stored.items() if value.finished and key != response_id]:
            if len(self._stored) <= self._max_responses and self._num_bytes <= self._max_bytes:
                break
            self._forget(old_id)

    def get(self, response_id: str, tenant: str, *, param: str | None = None) -> StoredResponse:
        """Raises NotFound for an id that is unknown, dropped, or another tenant's."""
        stored = self._stored.get(response_id)
        if stored is None or stored.tenant != tenant:
            raise NotFound(
                f"Response with id '{response_id[:64]}' not found.",
                param=param or "response_id",
                code="response_not_found",
            )
        self._stored.move_to_end(response_id)
        return stored

    def delete(self, response_id: str, tenant: str) -> StoredResponse:
        stored = self.get(response_id, tenant)
        self._forget(response_id)
        return stored

    def _forget(self, response_id: str) -> None:
        stored = self._stored.pop(response_id, None)
        if stored is not None:
            self._num_bytes -= stored.num_bytes
