"""A Responses request as a chat completions body, and a fresh response object that echoes the request."""

import time
import uuid
from typing import Any

from burrstone.serving.api.base import reject
from burrstone.serving.api.responses_schema import (
    AllowedTools,
    CreateResponse,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputMediaPart,
    ItemReference,
    JsonSchemaFormat,
    MessageItem,
    NamedTool,
)
from burrstone.serving.api.types import JsonObject

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def check(body: JsonObject, request: CreateResponse) -> None:
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
    if request.tools == []:
        return
    if request.tool_choice not in (None, "auto", "none") and not request.tools:
        raise reject("The 'tool_choice' parameter is only allowed when 'tools' are given.", "tool_choice")


def check_tool_types(body: JsonObject) -> None:
    """Hosted tools do not exist here; say so by name instead of as a schema error."""
    tools = body.get("tools")
    if not isinstance(tools, list):
        return
    for number, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise reject(
                f"Invalid value for 'tools[{number}].type': only function tools are offered here, not {kind[:64]!r}.",
                f"tools[{number}].type",
            )


def to_chat(request: CreateResponse, history: list[JsonObject], resolve: Any) -> tuple[JsonObject, list[JsonObject]]:
    """(chat body, its messages without instructions). `resolve(item id)` gives the chat messages of a stored item."""
    turns = history + input_messages(request, resolve)
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
    return body | _format(request), turns


def input_messages(request: CreateResponse, resolve: Any) -> list[JsonObject]:
    """The input as chat messages; neighbouring function calls become one assistant message."""
    if isinstance(request.input, str):
        return [{"role": "user", "content": request.input}]
    messages: list[JsonObject] = []
    for number, item in enumerate(request.input):
        where = f"input[{number}]"
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": _text(item.content, f"{where}.content")})
        elif isinstance(item, FunctionCallItem):
            call = {
                "id": item.call_id,
                "type": "function",
                "function": {"name": item.name, "arguments": item.arguments},
            }
            add_call(messages, call)
        elif isinstance(item, FunctionCallOutputItem):
            text = _text(item.output, f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        elif isinstance(item, ItemReference):
            messages += resolve(item.id)
        # A reasoning item is the model's own note to itself; chat templates drop earlier turns' reasoning too.
    if not messages:
        raise reject("Invalid value for 'input': it holds no message.", "input")
    return messages


def add_call(messages: list[JsonObject], call: JsonObject) -> None:
    if messages and messages[-1]["role"] == "assistant" and "tool_calls" in messages[-1]:
        messages[-1]["tool_calls"].append(call)
    else:
        messages.append({"role": "assistant", "tool_calls": [call]})


def input_items(request: CreateResponse) -> list[JsonObject]:
    """The input as GET /v1/responses/{id}/input_items shows it."""
    if isinstance(request.input, str):
        part = {"type": "input_text", "text": request.input}
        return [{"id": new_id("msg"), "type": "message", "role": "user", "status": "completed", "content": [part]}]
    items = []
    for item in request.input:
        dumped = item.model_dump(exclude_none=True)
        if isinstance(item, MessageItem) and isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            dumped["content"] = [{"type": kind, "text": item.content}]
        items.append({"id": new_id("item")} | dumped)
    return items


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
                "strict": tool.strict is not False,
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
    if len(system) < 2 and (not system or messages[0] is system[0]):
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


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, InputMediaPart):
            raise reject(
                f"Invalid value for '{where}[{number}]': this server takes text only.", f"{where}[{number}].type"
            )
        texts.append(part.refusal if part.type == "refusal" else part.text)
    return "\n".join(texts)
