"""POST /tokenize and /detokenize, as vLLM's server offers them."""

from typing import Annotated, Any

from pydantic import Field

from burrstone.serving.api.base import ListOf, RequestModel, UnknownFields, parse_model, reject
from burrstone.serving.api.chat import check_messages, check_offered, messages_to_vllm, tools_to_vllm
from burrstone.serving.api.chat_schema import Message, Tool
from burrstone.serving.api.types import JsonObject
from burrstone.serving.config import LimitsConfig


class Tokenize(RequestModel):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[ListOf[Message], Field(min_length=1)] | None = None
    tools: ListOf[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class Detokenize(RequestModel):
    model: str | None = None
    tokens: ListOf[Annotated[int, Field(ge=0, le=2**31 - 1)]]


def parse_tokenize(body: JsonObject, limits: LimitsConfig, unknown_fields: UnknownFields) -> Tokenize:
    """The body, checked. Raises InvalidRequest."""
    request = parse_model(Tokenize, body, unknown_fields)
    if (request.prompt is None) == (request.messages is None):
        raise reject("Give either 'prompt' or 'messages'.", "prompt")
    if request.prompt is not None and (request.tools is not None or request.add_generation_prompt is not None):
        raise reject("'tools' and 'add_generation_prompt' belong to 'messages', not to 'prompt'.", "prompt")
    check_messages(request.messages or [], limits)
    if request.tools is not None:
        check_offered(request.tools, limits)
    return request


def tokenize_to_vllm(request: Tokenize) -> dict[str, Any]:
    """Keyword arguments of vLLM's tokenize request for a prompt or for messages."""
    kwargs = request.model_dump(exclude_none=True, exclude={"messages", "tools"})
    if request.messages is not None:
        kwargs["messages"] = list(messages_to_vllm(request.messages))
    if request.tools is not None:
        kwargs["tools"] = tools_to_vllm(request.tools)
    return kwargs


def parse_detokenize(body: JsonObject, limits: LimitsConfig, unknown_fields: UnknownFields) -> Detokenize:
    """The body, checked. Raises InvalidRequest."""
    return parse_model(Detokenize, body, unknown_fields)


def detokenize_to_vllm(request: Detokenize) -> dict[str, Any]:
    """Keyword arguments of vLLM's detokenize request."""
    return request.model_dump(exclude_none=True)
