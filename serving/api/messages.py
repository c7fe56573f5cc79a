"""Anthropic's Messages API as a dialect of chat completions: one engine path, another wording."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from burrstone.batching.errors import ContextLengthExceeded, ServeError
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.base import UnknownFields, parse_model, reject
from burrstone.serving.api.messages_schema import AnthropicTool, CountTokens, CreateMessage, OutputConfig
from burrstone.serving.api.messages_stream import from_chat, from_chat_stream
from burrstone.serving.api.messages_turns import turns
from burrstone.serving.api.renaming import renamed
from burrstone.serving.api.types import JsonObject, Stream
from burrstone.serving.config import LimitsConfig
from burrstone.serving.status import wire_status

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_RENAMES = [
    (r"messages.*", "messages"),
    (r"max_completion_tokens", "max_tokens"),
    (r"stop", "stop_sequences"),
    (r"response_format(\.json_schema)?", "output_config.format"),
    (r"reasoning_effort", "output_config.effort"),
    (r"(tools\[\d+\])\.function\.parameters", r"\1.input_schema"),
    (r"(tools\[\d+\])\.function", r"\1"),
]


class Chat(Protocol):
    """The service's chat, which can leave the matched stop string in its choices."""

    def __call__(
        self, body: JsonObject, meta: RequestMeta, *, keep_stop_reason: bool = False
    ) -> Awaitable[JsonObject | Stream]: ...


class MessagesApi:
    """POST /v1/messages and /v1/messages/count_tokens."""

    def __init__(
        self,
        chat: Chat,
        count_prompt_tokens: Callable[[JsonObject, RequestMeta], Awaitable[int]],
        limits: LimitsConfig,
        unknown_fields: UnknownFields,
    ) -> None:
        self._chat = chat
        self._count_prompt_tokens = count_prompt_tokens
        self._limits = limits
        self._unknown_fields = unknown_fields

    async def create(self, body: JsonObject, meta: RequestMeta) -> JsonObject | Stream:
        request = parse_model(CreateMessage, body, self._unknown_fields)
        try:
            reply = await self._chat(to_chat(request, self._limits), meta, keep_stop_reason=True)
        except ServeError as error:
            raise renamed(error, _RENAMES) from error
        if isinstance(reply, dict):
            return from_chat(reply)
        return _renaming(from_chat_stream(reply, request.model))

    async def count_tokens(self, body: JsonObject, meta: RequestMeta) -> JsonObject:
        request = parse_model(CountTokens, body, self._unknown_fields)
        try:
            return {"input_tokens": await self._count_prompt_tokens(conversation(request), meta)}
        except ServeError as error:
            raise renamed(error, _RENAMES) from error


def error_body(error: ServeError, request_id: str) -> JsonObject:
    """Anthropic's error envelope."""
    status = wire_status(error).http
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    # Clients of Anthropic's API recognise an overflow by these words.
    message = f"prompt is too long: {error.message}" if isinstance(error, ContextLengthExceeded) else error.message
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def to_chat(request: CreateMessage, limits: LimitsConfig) -> JsonObject:
    """The chat completions body that means the same. Raises InvalidRequest for what has no such body."""
    body = conversation(request) | {"max_completion_tokens": request.max_tokens}
    for ours, theirs in (("temperature", request.temperature), ("top_p", request.top_p), ("top_k", request.top_k)):
        if theirs is not None:
            body[ours] = theirs
    if request.stop_sequences:
        if len(request.stop_sequences) > limits.max_stop_sequences:
            raise reject(f"stop_sequences: at most {limits.max_stop_sequences} entries.", "stop_sequences")
        body["stop"] = request.stop_sequences
    if request.output_config is not None:
        body |= _output_config(request.output_config)
    if request.stream:
        # Usage in every chunk, because message_start already has to name the input tokens.
        body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    if body["messages"][-1]["role"] == "assistant":
        body |= _prefill(body["messages"][-1]["content"])
    return body | _tool_choice(request)


def conversation(request: CountTokens) -> JsonObject:
    """Model, messages and tools as a chat body."""
    if request.thinking is not None and request.thinking.type == "enabled":
        raise reject("thinking: extended thinking is not offered; leave it out or send disabled.", "thinking")
    messages: list[JsonObject] = []
    if request.system is not None:
        system = request.system if isinstance(request.system, str) else "\n".join(b.text for b in request.system)
        messages.append({"role": "system", "content": system})
    body: JsonObject = {"model": request.model, "messages": messages + turns(request.messages)}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    return body


def _tool(tool: AnthropicTool) -> JsonObject:
    function: JsonObject = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _output_config(config: OutputConfig) -> JsonObject:
    body: JsonObject = {}
    if config.effort is not None:
        body["reasoning_effort"] = "xhigh" if config.effort == "max" else config.effort
    if config.format is not None:
        schema = {"name": "output", "schema": config.format.schema_, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _prefill(text: str) -> JsonObject:
    """A last turn of the assistant is the beginning of the answer: the model goes on where it ends."""
    if not text.strip():
        raise reject("messages: the final assistant content cannot be empty.", "messages")
    if text != text.rstrip():
        raise reject("messages: final assistant content cannot end with trailing whitespace.", "messages")
    return {"continue_final_message": True, "add_generation_prompt": False}


def _tool_choice(request: CreateMessage) -> JsonObject:
    choice = request.tool_choice
    if choice is None:
        return {}
    if not request.tools:
        if choice.type in ("auto", "none"):
            return {}
        raise reject("tool_choice: it is only allowed when tools are given.", "tool_choice")
    body: JsonObject = {}
    if choice.type == "tool":
        if choice.name is None:
            raise reject("tool_choice.name: a choice of type tool names the tool.", "tool_choice.name")
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        body["tool_choice"] = {"any": "required", "auto": "auto", "none": "none"}[choice.type]
    if choice.disable_parallel_tool_use:
        body["parallel_tool_calls"] = False
    return body


async def _renaming(events: Stream) -> Stream:
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event
    except ServeError as error:
        raise renamed(error, _RENAMES) from error
