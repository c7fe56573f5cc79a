"""Every vLLM import that is not a documented public API. A vLLM bump that moves one fails in this file's contract tests."""

import argparse
import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xgrammar
from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.protocol import LoRAModulePath
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeChatRequest, TokenizeCompletionRequest
from vllm.exceptions import GracefulHTTPError, QueueOverflowError, VLLMClientError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.structured_output.utils import grammar_is_likely_lark

__all__ = [
    "AsyncEngineArgs",
    "AsyncLLM",
    "ChatCompletionRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingCompletionRequest",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "EngineDeadError",
    "ErrorResponse",
    "FinishReason",
    "FrontendArgs",
    "GracefulHTTPError",
    "LoRAModulePath",
    "QueueOverflowError",
    "RequestOutputKind",
    "StatLoggerBase",
    "TokenizeChatRequest",
    "TokenizeCompletionRequest",
    "VLLMClientError",
    "build_handlers",
    "check_grammar",
    "check_grammars_once",
    "core_client",
    "core_from_forkserver",
    "create_error_response",
    "ebnf",
    "frontend_arguments",
    "logprobs_lists",
    "logprobs_tensors",
    "prefill_stats",
]


def frontend_arguments(engine_args: AsyncEngineArgs, **overrides: Any) -> argparse.Namespace:
    """The namespace vLLM's own server would be given: its defaults, our engine arguments, then `overrides`."""
    return argparse.Namespace(**(vars(FrontendArgs()) | vars(engine_args) | overrides))


async def build_handlers(engine_client: Any, arguments: argparse.Namespace, tasks: tuple[str, ...]) -> State:
    """vLLM's serving objects (openai_serving_chat, ...) over any engine client. Its HTTP app is not built."""
    state = State()
    await init_app_state(engine_client, state, arguments, tasks)
    return state


def check_grammar(engine: Any, params: Any) -> None:
    """vLLM's own check of a request's grammar, which chooses its backend too. Takes seconds for a hostile one; threadsafe.

    Raises VLLMClientError or ValueError.
    """
    inputs = engine.input_processor
    params._validate_structured_outputs(inputs.model_config, inputs.structured_outputs_config, inputs.tokenizer)


def check_grammars_once() -> None:
    """Let vLLM skip a grammar whose backend is chosen: it would check it again, on the event loop. Idempotent."""
    original = SamplingParams._validate_structured_outputs
    if hasattr(original, "_burrstone_original"):
        return

    @functools.wraps(original)
    def validate(self: Any, *args: Any) -> None:
        wanted = self.structured_outputs
        if wanted is None or wanted._backend is None:
            original(self, *args)

    validate._burrstone_original = original  # type: ignore[attr-defined]
    SamplingParams._validate_structured_outputs = validate


@contextmanager
def core_client(core: Any) -> Iterator[None]:
    """While this holds, an AsyncLLM that is built talks to `core` instead of starting processes."""
    original = EngineCoreClient.make_async_mp_client
    EngineCoreClient.make_async_mp_client = staticmethod(lambda **_: core)
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = original


@contextmanager
def core_from_forkserver() -> Iterator[None]:
    """While this holds, the engine core is forked from the multiprocessing fork server, which has vLLM imported."""
    original = engine_utils.get_mp_context
    engine_utils.get_mp_context = lambda: multiprocessing.get_context("forkserver")
    try:
        yield
    finally:
        engine_utils.get_mp_context = original


def logprobs_lists(tokens: Sequence[int], num_top: int, logprob: float) -> LogprobsLists:
    """Logprobs of sampled tokens: each the likeliest, its rivals made up in falling order."""
    rows = [[token, token, *(rival for rival in range(num_top) if rival != token)][: num_top + 1] for token in tokens]
    falling = [logprob] + [logprob - rank for rank in range(num_top)]
    values = np.array([falling] * len(tokens), dtype=np.float32)
    return LogprobsLists(np.array(rows), values, np.ones(len(tokens), dtype=np.int64))


def logprobs_tensors(tokens: Sequence[int], num_top: int, logprob: float) -> LogprobsTensors:
    """The same for the tokens of a prompt, which the engine core reports as tensors."""
    shape = (len(tokens), num_top + 1)
    lists = logprobs_lists(tokens, num_top, logprob)
    return LogprobsTensors(
        torch.from_numpy(lists.logprob_token_ids.reshape(shape).astype(np.int64)),
        torch.from_numpy(lists.logprobs.reshape(shape)),
        torch.from_numpy(lists.sampled_token_ranks),
    )


def ebnf(grammar: str) -> str:
    """A request's grammar, Lark or EBNF, as xgrammar writes it: a rule a line, starting at `root`."""
    read = xgrammar.Grammar.from_lark if grammar_is_likely_lark(grammar) else xgrammar.Grammar.from_ebnf
    return str(read(grammar))


def prefill_stats(num_prompt_tokens: int, num_cached_tokens: int) -> PrefillStats:
    """How a prompt was prefilled, as the engine core reports it with the first token."""
    stats = PrefillStats()
    stats.set(num_prompt_tokens, num_cached_tokens, 0)
    return stats
