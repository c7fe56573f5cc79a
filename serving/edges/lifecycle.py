"""starting -> ready -> draining -> stopped, or failed. Both edges ask here whether a request may come in."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

from burrstone.batching.errors import NotReady
from burrstone.serving.api.types import Api, JsonObject

Phase = Literal["starting", "ready", "draining", "failed"]
_HOPE_POLL_S = 0.2
_RETRY_AFTER_S = {"starting": 5.0, "draining": 5.0, "failed": 10.0}
_MESSAGE = {
    "starting": "The engine is starting; see /ready for its progress.",
    "draining": "This replica is shutting down; send the request to another one.",
    "failed": "The engine has failed and is being replaced.",
}


class Lifecycle:
    """`detail` says what a starting replica is doing, for /ready and the command line."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self.detail = "starting"
        self.num_requests = 0
        self._api: Api | None = None
        self._started_s = time.monotonic()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        return self.phase == "ready"

    def open(self, api: Api) -> None:
        """Take requests from now on, unless a drain or a failure came first."""
        self._api = api
        if self.phase == "starting":
            self.phase, self.detail = "ready", "serving"

    def close(self) -> None:
        self.phase, self.detail = "draining", "finishing running requests"

    def fail(self, detail: str) -> None:
        self.phase, self.detail = "failed", detail

    def api(self) -> Api:
        """The API, when it takes requests. Raises NotReady."""
        if self.phase != "ready" or self._api is None:
            raise NotReady(_MESSAGE[self.phase], retry_after_s=_RETRY_AFTER_S[self.phase])
        return self._api

    @contextlib.contextmanager
    def track(self) -> Iterator[None]:
        """Count a request that is being answered, so that draining can wait for it."""
        self.num_requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_requests -= 1
            if self.num_requests == 0:
                self._idle.set()

    async def wait_idle(self, timeout_s: float, *, hopeless: Callable[[], bool] = lambda: False) -> bool:
        """Wait until no request is being answered; False when the time ran out, or `hopeless()` came true, first."""
        deadline_s = time.monotonic() + timeout_s
        while not self._idle.is_set():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or hopeless():
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _HOPE_POLL_S)):
                    await self._idle.wait()
        return True

    def describe(self) -> JsonObject:
        return {
            "status": self.phase,
            "detail": self.detail,
            "elapsed_s": round(time.monotonic() - self._started_s, 1),
            "requests": self.num_requests,
        }
