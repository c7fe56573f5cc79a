"""The scripted engine: vLLM's real front end over a core that replays tokens. For edges and faults, never for claims.

Everything above the core (input processing, detokenizer, stop strings, vLLM's serving objects, our edges) is the
product's own path; only the choice of tokens is scripted.
"""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.schema_example import regex_example, schema_example, structural_tag_example
from burrstone.serving.engine.script import Rule, Script, default_answer

_LOGPROB = -0.1


async def start_scripted(engine_args: Any, script: Script) -> Any:
    """An AsyncLLM whose engine core is a ScriptedCore in this process."""
    config = await asyncio.to_thread(engine_args.create_engine_config)
    core = ScriptedCore(script)
    with vllm.core_client(core):
        engine = vllm.AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    core.tokenizer = engine.renderer.tokenizer
    return engine


class ScriptedCore:
    """Stands where vLLM's engine-core client stands. `running` holds the requests being answered."""

    def __init__(self, script: Script) -> None:
        self.tokenizer: Any = None
        self.engine_ranks_managed = [0]
        self.resources = SimpleNamespace(engine_dead=False)
        self.running: dict[str, asyncio.Task[None]] = {}
        self._script = script
        self._outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._loras: set[int] = set()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_request_async(self, request: Any) -> None:
        if self.resources.engine_dead:
            raise vllm.EngineDeadError
        task = asyncio.create_task(self._answer(request))
        self.running[request.request_id] = task
        task.add_done_callback(lambda _: self.running.pop(request.request_id, None))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            task = self.running.pop(request_id, None)
            if task is not None:
                task.cancel()

    async def get_output_async(self) -> Any:
        output = await self._outputs.get()
        if isinstance(output, Exception):
            raise output
        return output

    async def add_lora_async(self, lora_request: Any) -> bool:
        self._loras.add(lora_request.lora_int_id)
        return True

    async def list_loras_async(self) -> set[int]:
        return set(self._loras)

    async def reset_prefix_cache_async(self, *_: Any, **__: Any) -> bool:
        return True

    def shutdown(self, timeout: float | None = None) -> None:
        for task in self.running.values():
            task.cancel()
        self.running.clear()

    async def _answer(self, request: Any) -> None:
        params = request.sampling_params
        prompt = self.tokenizer.decode(request.prompt_token_ids)
        rule = self._script.rule_for(prompt) or Rule("", text=_text(params, prompt), delay_ms=self._script.delay_ms)
        tokens = list(rule.tokens) or self.tokenizer.encode(rule.text, add_special_tokens=False)
        finish = vllm.FinishReason.STOP if rule.finish == "stop" else vllm.FinishReason.LENGTH
        if rule.finish == "error":
            finish = vllm.FinishReason.ERROR
        elif rule.finish == "stop" and not params.ignore_eos:
            tokens.append(self.tokenizer.eos_token_id)
        if len(tokens) > params.max_tokens:
            tokens, finish = tokens[: params.max_tokens], vllm.FinishReason.LENGTH
        cached = rule.cached_tokens
        for start in range(0, len(tokens), rule.tokens_per_step):
            if rule.delay_ms:
                await asyncio.sleep(rule.delay_ms / 1000)
            if rule.die_after is not None and start >= rule.die_after:
                self.resources.engine_dead = True
                self._outputs.put_nowait(vllm.EngineDeadError())
                return
            if rule.hang_after is not None and start >= rule.hang_after:
                await asyncio.Event().wait()
            step = tokens[start : start + rule.tokens_per_step]
            last = start + rule.tokens_per_step >= len(tokens)
            self._emit(request, step, finish if last else None, cached if start == 0 else None)
            await asyncio.sleep(0)

    def _emit(self, request: Any, tokens: list[int], finish: Any, cached: int | None) -> None:
        wanted = request.sampling_params.logprobs
        logprobs = None if wanted is None else vllm.logprobs_lists(tokens, wanted, _LOGPROB)
        stats = None if cached is None else vllm.prefill_stats(len(request.prompt_token_ids), cached)
        output = vllm.EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=tokens,
            new_logprobs=logprobs,
            finish_reason=finish,
            prefill_stats=stats,
        )
        self._outputs.put_nowait(vllm.EngineCoreOutputs(outputs=[output]))


def _text(params: Any, prompt: str) -> str:
    """The smallest answer that follows the request's grammar, or the script's default."""
    wanted = params.structured_outputs
    if wanted is None:
        return default_answer(prompt)
    if wanted.choice:
        return str(wanted.choice[0])
    if wanted.regex is not None:
        return regex_example(wanted.regex)
    if wanted.json is not None:
        schema = json.loads(wanted.json) if isinstance(wanted.json, str) else wanted.json
        return json.dumps(schema_example(schema))
    if wanted.structural_tag is not None:
        return structural_tag_example(wanted.structural_tag)
    return "{}"
