"""From a configuration to a warm engine behind the API. Runs inside the replica."""

import asyncio
import contextlib
import gc
import importlib
import logging
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from burrstone.batching.errors import InvalidRequest, NotReady
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.types import Api, JsonObject, Stream
from burrstone.serving.config import SchedulerConfig, ServeConfig
from burrstone.serving.edges.lifecycle import Lifecycle
from burrstone.serving.engine import forkserver
from burrstone.serving.engine.cpu import check_cpu, kv_cache_bytes
from burrstone.serving.engine.scheduling.options import SchedulerOptions
from burrstone.serving.hardware import detect
from burrstone.serving.metrics import ApiMetrics, EngineMetrics, SchedulerMetrics
from burrstone.serving.verdict import examine_again

log = logging.getLogger("burrstone.engine")
_WARM_UP_META = RequestMeta(request_id="warm-up", tenant="burrstone")
_WARM_UP_TOKENS = 4
_WARM_UP_SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@dataclass(frozen=True, slots=True)
class Engine:
    """A warm engine. `seam` is what vLLM's serving objects talk to."""

    api: Api
    seam: Any

    @property
    def dead(self) -> bool:
        return bool(self.seam.errored)

    async def end_running(self) -> None:
        """End what is still running, each request with an error that says why."""
        await self.seam.end_running(NotReady("The server is shutting down; the request was ended.", retry_after_s=5.0))

    def shutdown(self) -> None:
        """Stop the engine's processes; blocks until they are gone."""
        self.seam.shutdown(timeout=5.0)


async def start_engine(
    config: ServeConfig,
    lifecycle: Lifecycle,
    metrics: ApiMetrics,
    registry: CollectorRegistry,
    judged_stamp: str | None = None,
) -> Engine:
    """Load, compile, warm up. The event loop stays free, so that /health and /ready answer meanwhile.

    `config.profile` is a real one, not `auto`. `judged_stamp`: see `examine_again`, which may refuse the model.
    """
    started_s = time.monotonic()
    with _without_collections():
        engine = await _start(config, lifecycle, metrics, registry, judged_stamp)
    log.info("engine ready in %.1f s", time.monotonic() - started_s)
    return engine


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """No garbage collection while a start fills the heap (a fifth of the import's time), and none of that heap later."""
    gc.disable()
    try:
        yield
        gc.collect()
        gc.freeze()
    finally:
        gc.enable()


async def _start(
    config: ServeConfig,
    lifecycle: Lifecycle,
    metrics: ApiMetrics,
    registry: CollectorRegistry,
    judged_stamp: str | None,
) -> Engine:
    lifecycle.detail = "importing vLLM"
    if config.profile == "cpu" and config.engine.kind == "vllm":
        forkserver.start()
    # Importing vLLM takes seconds of pure Python: off the loop, or /ready would hang.
    arguments = await asyncio.to_thread(importlib.import_module, "burrstone.serving.engine.arguments")
    models = await asyncio.to_thread(importlib.import_module, "burrstone.serving.engine.models")
    seams = importlib.import_module("burrstone.serving.engine.seam")
    gates = importlib.import_module("burrstone.serving.engine.gate")
    backends = importlib.import_module("burrstone.serving.engine.backend")
    services = await asyncio.to_thread(importlib.import_module, "burrstone.serving.api.service")

    lifecycle.detail = "loading the model"
    model = await asyncio.to_thread(models.resolve_model, config.model, config.cache_dir.expanduser())
    await asyncio.to_thread(examine_again, config, model, judged_stamp, log.info)
    kv_bytes = await asyncio.to_thread(_kv_cache_bytes, config, model.config)
    engine_args = arguments.engine_arguments(config, model, kv_cache_bytes=kv_bytes)
    lifecycle.detail = "starting the engine: loading weights, compiling"
    llm = await _start_llm(config, engine_args, registry)
    try:
        engine_metrics = EngineMetrics(registry)
        seats = llm.vllm_config.scheduler_config.max_num_seqs
        # Warming up is nobody's traffic: it passes whatever the configuration refuses, and teaches the gate nothing.
        open_gate = await asyncio.to_thread(gates.Gate, SchedulerConfig(), engine_metrics, engine_seats=seats)
        seam = seams.EngineSeam(llm, config.limits, engine_metrics, open_gate)
        backend = await backends.Backend.create(seam, arguments.serving_arguments(config, model, engine_args))
        api = services.OpenAIService(backend, config, metrics, lifecycle.track)
        lifecycle.detail = "warming up"
        if backend.generates():
            await _warm_up(api, backend.model_names[0])
        # A guess would be worse than to learn; a calibrated model is as good as having learnt.
        calibrated = config.scheduler.step_model is not None
        step_model = SchedulerOptions.of(config.scheduler, config.profile).model if calibrated else None
        seam.gate = gates.Gate(config.scheduler, engine_metrics, engine_seats=seats, model=step_model)
    except BaseException:
        await asyncio.to_thread(llm.shutdown)
        raise
    return Engine(api, seam)


def _kv_cache_bytes(config: ServeConfig, model_config: dict[str, Any]) -> int | None:
    """Sized here on the CPU, where vLLM would claim nearly all memory; left to vLLM's profiling run elsewhere."""
    if config.profile != "cpu":
        return None if config.engine.kv_cache_gib is None else int(config.engine.kv_cache_gib * 2**30)
    hardware = detect()
    check_cpu(config, hardware)
    return kv_cache_bytes(config, hardware, model_config)


async def _start_llm(config: ServeConfig, engine_args: Any, registry: CollectorRegistry) -> Any:
    if config.engine.kind == "scripted":
        scripted = importlib.import_module("burrstone.serving.engine.scripted")
        script = importlib.import_module("burrstone.serving.engine.script")
        return await scripted.start_scripted(engine_args, script.load_script(config.engine.script))
    compat = importlib.import_module("burrstone.serving.engine.vllm_compat")
    loggers = importlib.import_module("burrstone.serving.engine.scheduling.metrics").stat_loggers(
        SchedulerMetrics(registry, config.scheduler.policy)
    )
    with compat.core_from_forkserver() if config.profile == "cpu" else contextlib.nullcontext():
        return await asyncio.to_thread(compat.AsyncLLM.from_engine_args, engine_args, stat_loggers=loggers)


async def _warm_up(api: Api, model: str) -> None:
    """Greedy, sampled and structured requests, so that no user pays for a first use."""
    base = {"model": model, "prompt": "Hi", "max_tokens": _WARM_UP_TOKENS}
    for body in (
        base | {"temperature": 0.0, "stream": True},
        base | {"temperature": 1.0, "seed": 1, "logprobs": 1},
        base | {"temperature": 0.0, "structured_outputs": {"json": _WARM_UP_SCHEMA}},
    ):
        await _finish(api.completions(body, _WARM_UP_META))
    messages = [{"role": "user", "content": "Hi"}]
    try:
        await _finish(api.chat({"model": model, "messages": messages, "max_tokens": 1, "stream": True}, _WARM_UP_META))
    except InvalidRequest as error:
        log.warning("chat requests will be refused: %s", error.message)  # a base model without a chat template


async def _finish(answer: Awaitable[JsonObject | Stream]) -> None:
    reply = await answer
    if not isinstance(reply, dict):
        async for _ in reply:
            pass
