"""Every vLLM import that is not a documented public API. A vLLM bump that moves one fails in this file's contract tests."""

import argparse
from typing import Any

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
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

__all__ = [
    "AsyncEngineArgs",
    "AsyncLLM",
    "ChatCompletionRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingCompletionRequest",
    "EngineDeadError",
    "ErrorResponse",
    "FrontendArgs",
    "GracefulHTTPError",
    "LoRAModulePath",
    "TokenizeChatRequest",
    "TokenizeCompletionRequest",
    "VLLMClientError",
    "build_handlers",
    "create_error_response",
    "frontend_arguments",
]


def frontend_arguments(engine_args: AsyncEngineArgs, **overrides: Any) -> argparse.Namespace:
    """The namespace vLLM's own server would be given: its defaults, our engine arguments, then `overrides`."""
    return argparse.Namespace(**(vars(FrontendArgs()) | vars(engine_args) | overrides))


async def build_handlers(engine_client: Any, arguments: argparse.Namespace, tasks: tuple[str, ...]) -> State:
    """vLLM's serving objects (openai_serving_chat, ...) over any engine client. Its HTTP app is not built."""
    state = State()
    await init_app_state(engine_client, state, arguments, tasks)
    return state
