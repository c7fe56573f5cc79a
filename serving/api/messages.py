"""Anthropic's Messages API as a dialect of chat completions: one engine path, another wording."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from burrstone.batching.errors import ServeError
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.base import UnknownFields, parse_model, reject
from burrstone.serving.api.messages_schema import CountTokens, CreateMessage, InputMessage, MediaBlock
from burrstone.serving.api.messages_stream import from_chat, from_chat_stream
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
        reply = await self._chat(to_chat(request, self._limits), meta, keep_stop_reason=True)
        if isinstance(reply, dict):
            return from_chat(reply)
        return from_chat_stream(reply, request.model)

    async def count_tokens(self, body: JsonObject, meta: RequestMeta) -> JsonObject:
        request = parse_model(CountTokens, body, self._unknown_fields)
        return {"input_tokens": await self._count_prompt_tokens(conversation(request), meta)}


def error_body(error: ServeError, request_id: str) -> JsonObject:
    """Anthropic's error envelope."""
    kind = _ERROR_TYPES.get(wire_status(error).http, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


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
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | _tool_choice(request)


def conversation(request: CountTokens) -> JsonObject:
    """Model, messages and tools as a chat body."""
    if request.thinking is not None and request.thinking.type == "enabled":
        raise reject("thinking: extended thinking is not offered; leave it out or send disabled.", "thinking")
    messages: list[JsonObject] = []
    if request.system is not None:
        system = request.system if isinstance(request.system, str) else "\n".join(b.text for b in request.system)
        messages.append({"role": "system", "content": system})
    for number, message in enumerate(request.messages):
        messages += _turn(message, f"messages[{number}]")
    body: JsonObject = {"model": request.model, "messages": messages}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "parameters": tool.input_schema}
                | ({"description": tool.description} if tool.description is not None else {})
                | ({"strict": tool.strict} if tool.strict is not None else {}),
            }
            for tool in request.tools
        ]
    return body


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


def _turn(message: InputMessage, where: str) -> list[JsonObject]:
    """One Anthropic turn as chat messages: tool results come first, each a message of its own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    texts: list[str] = []
    calls: list[JsonObject] = []
    results: list[JsonObject] = []
    for index, block in enumerate(message.content):
        path = f"{where}.content[{index}]"
        if isinstance(block, MediaBlock):
            raise reject(f"{path}: this server takes text only, not {block.type}.", f"{path}.type")
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "tool_use":
            _require_role(message, "assistant", path)
            arguments = json.dumps(block.input, ensure_ascii=False)
            calls.append({"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}})
        elif block.type == "tool_result":
            _require_role(message, "user", path)
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result_text(block, path)})
    turn: JsonObject = {"role": message.role}
    if texts or not (calls or results):
        turn["content"] = "\n".join(texts)
    if calls:
        turn["tool_calls"] = calls
    return results + ([turn] if len(turn) > 1 else [])


def _require_role(message: InputMessage, role: str, path: str) -> None:
    if message.role != role:
        raise reject(f"{path}: such a block belongs to the {role}.", path)


def _result_text(block: Any, path: str) -> str:
    if block.content is None:
        return ""
    if isinstance(block.content, str):
        return block.content
    for part in block.content:
        if isinstance(part, MediaBlock):
            raise reject(f"{path}.content: this server takes text only, not {part.type}.", f"{path}.content")
    return "\n".join(part.text for part in block.content)
