"""What a server says of itself during a run: its Prometheus page, once a second.

The page counts every request of the server's, so what others send meanwhile is in it too.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from burrstone.bench.load.streams import base_url

# Name on the page -> ours. Engines and labels are added up, but for shares.
SERIES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_share",
    "burrstone_generations_running": "generations",
    "burrstone_gate_waiting": "gate_waiting",
    # From here on they only rise.
    "vllm:generation_tokens_total": "output_tokens",
    "vllm:prefix_cache_queries_total": "prefix_asked_tokens",
    "vllm:prefix_cache_hits_total": "prefix_hit_tokens",
    "vllm:request_queue_time_seconds_sum": "queue_s",
    "vllm:request_queue_time_seconds_count": "queued",
}
_SHARES = {"kv_share"}
# A page has thousands of lines, most of them buckets: only these are parsed, so that the load is not held up.
_WANTED = re.compile(rf"^(?:{'|'.join(map(re.escape, SERIES))})[ {{].*$", re.MULTILINE)
_EVERY_S = 1.0
_TIMEOUT_S = 5.0


@dataclass(slots=True)
class ServerMetrics:
    """What was seen. `missing`: why nothing was."""

    at_s: list[float] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    missing: str | None = None

    def figures(self) -> dict[str, Any]:
        """`timeline` with a list of each series, or `timeline_missing`; and what follows from the counters."""
        if self.missing is not None:
            return {"timeline_missing": self.missing}
        names = [name for name in SERIES.values() if any(name in sample for sample in self.samples)]
        lists = {name: [sample.get(name) for sample in self.samples] for name in names}
        queue_s = self._quotient("queue_s", "queued")
        return {
            "timeline": {"at_s": self.at_s, **lists},
            "mean_queue_ms": None if queue_s is None else 1000.0 * queue_s,
            "server_prefix_hit_share": self._quotient("prefix_hit_tokens", "prefix_asked_tokens"),
        }

    def _quotient(self, above: str, below: str) -> float | None:
        """Of what both counters rose by; None where they did not, or the server was started anew meanwhile."""
        first, last = self.samples[0], self.samples[-1]
        rises = [last[name] - first[name] for name in (above, below) if name in first and name in last]
        return rises[0] / rises[1] if len(rises) == 2 and rises[0] >= 0 and rises[1] > 0 else None


@contextlib.asynccontextmanager
async def watching(url: str, key: str | None, now: Callable[[], float]) -> AsyncIterator[ServerMetrics]:
    """Sample while the body runs, and once more after it. now: the clock of `at_s`."""
    seen = ServerMetrics()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        page = f"{base_url(url)}/metrics"
        task = asyncio.create_task(_watch(session, page, now, seen))
        try:
            yield seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await _sample(session, page, now, seen)


async def _watch(session: aiohttp.ClientSession, page: str, now: Callable[[], float], seen: ServerMetrics) -> None:
    while seen.missing is None:
        await _sample(session, page, now, seen)
        await asyncio.sleep(_EVERY_S)


async def _sample(session: aiohttp.ClientSession, page: str, now: Callable[[], float], seen: ServerMetrics) -> None:
    """A page that fails once it has been there is a gap: the server is busy."""
    if seen.missing is not None:
        return
    try:
        async with session.get(page) as reply:
            reply.raise_for_status()
            at_s, found = now(), read_page(await reply.text())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        if not seen.samples:
            status = getattr(error, "status", None)
            seen.missing = f"{page}: {status or str(error) or type(error).__name__}"
        return
    if found:
        seen.at_s.append(at_s)
        seen.samples.append(found)
    elif not seen.samples:
        seen.missing = f"{page}: none of vLLM's or burrstone's metrics there"


def read_page(text: str) -> dict[str, float]:
    """Our name -> value, of the series that are on the page."""
    values: dict[str, list[float]] = {}
    for family in text_string_to_metric_families("\n".join(_WANTED.findall(text)) + "\n"):
        for sample in family.samples:
            values.setdefault(SERIES[sample.name], []).append(sample.value)
    return {name: sum(those) / (len(those) if name in _SHARES else 1) for name, those in values.items()}
