"""A Responses request as a chat completions body, and a fresh response object that echoes the request."""

import time
from typing import Any

from burrstone.serving.api.base import reject
from burrstone.serving.api.responses_input import new_id
from burrstone.serving.api.responses_schema import (
    AllowedTools,
    CreateResponse,
    JsonSchemaFormat,
    NamedTool,
)
from burrstone.serving.api.types import JsonObject
from burrstone.serving.config import LimitsConfig

LOGPROBS = "message.output_text.logprobs"
# Agents ask for encrypted reasoning as a matter of course; this server has none, so none is ever included.
_INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")
_UNSUPPORTED = {
    "conversation": "send the items, or chain with previous_response_id",
    "prompt": "there are no stored prompt templates; send instructions and input",
    "max_tool_calls": "it bounds hosted tools, of which there are none; count the calls your side answers",
}


def refuse_unsupported(body: JsonObject) -> None:
    """What this server does not have, by name: hosted tools, and state that lives elsewhere. Raises InvalidRequest."""
    for name, reason in _UNSUPPORTED.items():
        if body.get(name) is not None:
            raise reject(f"'{name}' is not offered here: {reason}.", name, "unsupported_parameter")
    tools = body.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise reject(
                f"Invalid value for 'tools[{number}].type': only function tools are offered here, not {kind[:64]!r}.",
                f"tools[{number}].type",
            )


def check(request: CreateResponse, limits: LimitsConfig) -> None:
    """Raises InvalidRequest for what the schema cannot say."""
    for name in request.include or []:
        if name not in _INCLUDABLE:
            raise reject(f"Invalid value for 'include': {name[:64]!r} is not offered here.", "include")
    if request.truncation == "auto":
        raise reject(
            "truncation 'auto' is not offered: input is never dropped in silence; use 'disabled'.", "truncation"
        )
    if request.background and request.store is False:
        raise reject("A background response has to be stored: leave 'store' out or send true.", "store")
    if request.tool_choice not in (None, "auto", "none") and not request.tools:
        raise reject("The 'tool_choice' parameter is only allowed when 'tools' are given.", "tool_choice")
    if request.top_logprobs is not None and request.top_logprobs > limits.max_logprobs:
        raise reject(f"Invalid value for 'top_logprobs': at most {limits.max_logprobs}.", "top_logprobs")
    metadata = request.metadata or {}
    if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise reject(
            "Invalid value for 'metadata': at most 16 pairs, keys of 64 and values of 512 characters.", "metadata"
        )


def to_chat(request: CreateResponse, turns: list[JsonObject]) -> JsonObject:
    """The chat body that means the same; `turns` are the chat messages of the history and the input."""
    system = [{"role": "system", "content": request.instructions}] if request.instructions else []
    body: JsonObject = {"model": request.model, "messages": _merge_system(system + turns)}
    for ours, theirs in (
        ("max_completion_tokens", request.max_output_tokens),
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("frequency_penalty", request.frequency_penalty),
        ("presence_penalty", request.presence_penalty),
        ("user", request.user),
    ):
        if theirs is not None:
            body[ours] = theirs
    if request.tools:
        body["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type"})}
            for tool in request.tools
        ]
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
        if request.tool_choice is not None:
            body["tool_choice"] = _tool_choice(request.tool_choice)
    if LOGPROBS in (request.include or []) or request.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.reasoning is not None and request.reasoning.effort is not None:
        body["reasoning_effort"] = request.reasoning.effort
    return body | _format(request)


def new_response(request: CreateResponse, status: str) -> JsonObject:
    """A response object before any output: every field of the request echoed, nothing required left out."""
    text = request.text.model_dump(exclude_none=True, by_alias=True) if request.text is not None else {}
    reasoning = request.reasoning
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": status,
        "background": bool(request.background),
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": _echo(request.tool_choice),
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            }
            for tool in request.tools or []
        ],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
        "metadata": request.metadata or {},
    }


def response_usage(usage: JsonObject) -> JsonObject:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": usage["total_tokens"],
    }


def _merge_system(messages: list[JsonObject]) -> list[JsonObject]:
    """Chat templates take one system message, first: instructions and developer items are joined into it."""
    system = [message for message in messages if message["role"] in ("system", "developer")]
    if not system:
        return messages
    joined = "\n\n".join(message["content"] for message in system)
    return [{"role": "system", "content": joined}, *(m for m in messages if m["role"] not in ("system", "developer"))]


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, NamedTool):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, AllowedTools):
        tools = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return choice


def _echo(choice: Any) -> Any:
    if choice is None:
        return "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _format(request: CreateResponse) -> JsonObject:
    wanted = request.text.format if request.text is not None else None
    if wanted is None or wanted.type == "text":
        return {}
    if isinstance(wanted, JsonSchemaFormat):
        schema = wanted.model_dump(exclude_none=True, by_alias=True, exclude={"type"})
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}}
