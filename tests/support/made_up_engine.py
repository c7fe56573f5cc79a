"""A made-up engine behind a real seam: tests decide what it answers, and when."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from burrstone.batching.request import RequestMeta
from burrstone.serving.config import LimitsConfig, SchedulerConfig
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.gate import Gate
from burrstone.serving.engine.seam import Call, EngineSeam, current_call
from burrstone.serving.metrics import EngineMetrics


def output(num_tokens: int, *, finished: bool = False) -> Any:
    """vLLM's RequestOutput, as far as it is looked at."""
    return SimpleNamespace(
        outputs=[SimpleNamespace(token_ids=[0] * num_tokens)],
        finished=finished,
        prompt_token_ids=[1, 2, 3],
        num_cached_tokens=2,
    )


@dataclass
class FakeEngine:
    """Yields what tests put into a request's queue; an abort ends it as vLLM's does, with a last, finished output."""

    errored: bool = False
    queues: dict[str, asyncio.Queue[Any]] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    arrivals: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    aborted: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        self.seen[request_id] = SimpleNamespace(prompt=prompt, params=sampling_params, kwargs=kwargs)
        self.arrivals.put_nowait(request_id)
        queue = self.queues.setdefault(request_id, asyncio.Queue())
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            self.closed.append(request_id)

    encode = generate

    async def abort(self, request_ids: str | list[str]) -> None:
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            if request_id in self.queues:
                self.aborted.append(request_id)
                self.queues[request_id].put_nowait(output(0, finished=True))


class Bench:
    """A seam over a fake engine, and requests through it."""

    def __init__(self, scheduler: SchedulerConfig | None = None, **limits: Any) -> None:
        self.engine = FakeEngine()
        self.registry = CollectorRegistry()
        metrics = EngineMetrics(self.registry)
        gate = Gate(scheduler or SchedulerConfig(), metrics, engine_seats=256)
        self.seam = EngineSeam(self.engine, LimitsConfig(**limits), metrics, gate)

    def send(self, *items: Any, request_id: str = "r") -> None:
        queue = self.engine.queues.setdefault(request_id, asyncio.Queue())
        for item in items:
            queue.put_nowait(item)

    def start(self, call: Call, request_id: str = "r", **params: Any) -> AsyncGenerator[Any, None]:
        current_call.set(call)
        params = {
            "extra_args": None,
            "max_tokens": 100,
            "n": 1,
            "structured_outputs": None,
            "output_kind": vllm.RequestOutputKind.DELTA,
        } | params
        return self.seam.generate({"prompt_token_ids": [1, 2, 3]}, SimpleNamespace(**params), request_id)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"burrstone_{name}", labels)

    def idle(self) -> bool:
        return self.seam.num_running == 0 and self.metric("generations_running") == 0


def call(**meta: Any) -> Call:
    return Call(RequestMeta(request_id="x", **meta))


async def drain(outputs: AsyncGenerator[Any, None]) -> int:
    async with contextlib.aclosing(outputs):
        return len([one async for one in outputs])
