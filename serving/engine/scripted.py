"""The scripted engine: vLLM's real front end over a core that replays tokens. For edges and faults, never for claims.

Everything above the core (input processing, detokenizer, stop strings, vLLM's serving objects, our edges) is the
product's own path; only the choice of tokens is scripted.
"""

import asyncio
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from burrstone.serving.config import ConfigError
from burrstone.serving.engine import vllm_compat as vllm
from burrstone.serving.engine.default_answer import default_answer, last_turn, tool_schemas
from burrstone.serving.engine.grammar_example import ebnf_example, regex_example
from burrstone.serving.engine.schema_example import schema_example
from burrstone.serving.engine.script import Limits, Replay, Rule, Script, replay
from burrstone.serving.engine.tag_example import structural_tag_example

log = logging.getLogger("burrstone.scripted")


async def start_scripted(engine_args: Any, script: Script) -> Any:
    """An AsyncLLM whose engine core is a ScriptedCore in this process. Raises ConfigError for a token the model lacks."""
    config = await asyncio.to_thread(engine_args.create_engine_config)
    vocab_size = config.model_config.get_vocab_size()
    for number, rule in enumerate(script.rules):
        if any(token >= vocab_size for token in rule.tokens):
            raise ConfigError(f"engine.script: rules[{number}].tokens: the model has {vocab_size} tokens")
    core = ScriptedCore(script)
    with vllm.core_client(core):
        engine = vllm.AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    core.attach(engine)
    return engine


class ScriptedCore:
    """Stands where vLLM's engine-core client stands. `running` holds the requests being answered."""

    def __init__(self, script: Script) -> None:
        self.engine_ranks_managed = [0]
        self.resources = SimpleNamespace(engine_dead=False)
        self.running: dict[str, asyncio.Task[None]] = {}
        self._script = script
        self._outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._loras: set[int] = set()
        self._tokenizer: Any = None
        self._forget: Any = None

    def attach(self, engine: Any) -> None:
        """Take from the front end built over this core what the core needs of it."""
        self._tokenizer = engine.renderer.tokenizer
        self._forget = engine.output_processor.abort_requests

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_request_async(self, request: Any) -> None:
        if self.resources.engine_dead:
            raise vllm.EngineDeadError
        try:
            prompt = self._tokenizer.decode(request.prompt_token_ids)
            rule = self._script.rule_for(prompt)
            if rule.queue_full:
                raise vllm.QueueOverflowError
            planned = self._plan(request.sampling_params, prompt, rule)
        except Exception:
            # The front end has registered the request already, and would count it as unfinished for good.
            self._forget([request.request_id], internal=True)
            raise
        task = asyncio.create_task(self._answer(request, rule, planned))
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

    async def remove_lora_async(self, lora_id: int) -> bool:
        known = lora_id in self._loras
        self._loras.discard(lora_id)
        return known

    async def list_loras_async(self) -> set[int]:
        return set(self._loras)

    async def pin_lora_async(self, lora_id: int) -> bool:
        return lora_id in self._loras

    async def reset_prefix_cache_async(self, *_: Any, **__: Any) -> bool:
        return True

    def dp_engines_running(self) -> bool:
        return bool(self.running)

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop every answer. May be called from any thread."""
        for task in list(self.running.values()):
            loop = task.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

    def _plan(self, params: Any, prompt: str, rule: Rule) -> Replay:
        tokens = rule.tokens
        if not tokens:
            try:
                text = _default_text(params, prompt) if rule.text is None else rule.text
            except (ValueError, RecursionError) as error:
                # Where the real engine finds no token that its grammar allows, it gives the request up.
                log.warning("no answer for the request's grammar: %s", error)
                return Replay((), "error")
            tokens = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        limits = Limits(
            max_tokens=params.max_tokens,
            eos_token_id=self._tokenizer.eos_token_id,
            min_tokens=params.min_tokens,
            ignore_eos=params.ignore_eos,
            stop_token_ids=frozenset(params.stop_token_ids or ()),
        )
        return replay(tokens, rule, limits)

    async def _answer(self, request: Any, rule: Rule, planned: Replay) -> None:
        first = True
        for step, last in _steps(planned.tokens, rule.tokens_per_step):
            if rule.delay_ms:
                await asyncio.sleep(rule.delay_ms / 1000)
            if step or planned.finish is not None:
                self._emit(request, rule, step, planned if last else None, first)
                first = False
            await asyncio.sleep(0)
        if planned.fault == "hang":
            await asyncio.Event().wait()
        elif planned.fault == "die":
            self._die()

    def _die(self) -> None:
        self.resources.engine_dead = True
        for task in self.running.values():
            if task is not asyncio.current_task():
                task.cancel()
        self._outputs.put_nowait(vllm.EngineDeadError())

    def _emit(self, request: Any, rule: Rule, tokens: tuple[int, ...], ending: Replay | None, first: bool) -> None:
        params, prompt_tokens = request.sampling_params, request.prompt_token_ids
        output = vllm.EngineCoreOutput(request_id=request.request_id, new_token_ids=list(tokens))
        if tokens and params.logprobs is not None:
            output.new_logprobs = vllm.logprobs_lists(tokens, params.logprobs, rule.logprob)
        if first:
            output.prefill_stats = vllm.prefill_stats(len(prompt_tokens), min(rule.cached_tokens, len(prompt_tokens)))
            if params.prompt_logprobs is not None:
                wanted = params.prompt_logprobs
                output.new_prompt_logprobs_tensors = vllm.logprobs_tensors(prompt_tokens[1:], wanted, rule.logprob)
        if ending is not None and ending.finish is not None:
            output.finish_reason = vllm.FinishReason[ending.finish.upper()]
            output.stop_reason = ending.stop_token_id
        self._outputs.put_nowait(vllm.EngineCoreOutputs(outputs=[output]))


def _steps(tokens: tuple[int, ...], per_step: int) -> Iterator[tuple[tuple[int, ...], bool]]:
    """(tokens of a step, whether it is the last); one empty step where there are no tokens."""
    for start in range(0, max(1, len(tokens)), per_step):
        yield tokens[start : start + per_step], start + per_step >= len(tokens)


def _default_text(params: Any, prompt: str) -> str:
    """A small answer that follows the request's grammar, or the default answer."""
    wanted = params.structured_outputs
    if wanted is None:
        return default_answer(prompt)
    if wanted.choice:
        return str(wanted.choice[0])
    if wanted.regex is not None:
        return regex_example(wanted.regex)
    if wanted.grammar is not None:  # a list of choices comes as a grammar too
        return ebnf_example(vllm.ebnf(wanted.grammar))
    last = last_turn(prompt)
    if wanted.json is not None:
        schema = json.loads(wanted.json) if isinstance(wanted.json, str) else wanted.json
        return json.dumps(schema_example(schema, last), ensure_ascii=False)
    if wanted.structural_tag is not None:
        tagged = structural_tag_example(wanted.structural_tag, tool_schemas(prompt), last)
        return default_answer(prompt) if tagged is None else tagged
    return json.dumps({"answer": "yes"})
