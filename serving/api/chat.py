"""Chat completions: from OpenAI's request to vLLM's. The way back is in chat_fix."""

from collections.abc import Iterable
from typing import Any

import msgspec

from burrstone.serving.api.base import UnknownFields, parse_model, reject
from burrstone.serving.api.chat_fix import calls_no_tool, fix_response, fix_stream
from burrstone.serving.api.chat_schema import (
    AllowedToolsChoice,
    AssistantMessage,
    CreateChatCompletion,
    FunctionMessage,
    FunctionName,
    JsonSchemaFormat,
    MediaPart,
    Message,
    NamedToolChoice,
    Tool,
    ToolMessage,
)
from burrstone.serving.api.grammar import check_schema, depth
from burrstone.serving.api.sampling import check_sampling, sampling_to_vllm
from burrstone.serving.api.types import JsonObject
from burrstone.serving.config import LimitsConfig

__all__ = [
    "calls_no_tool",
    "check_messages",
    "check_offered",
    "fix_response",
    "fix_stream",
    "messages_to_vllm",
    "parse",
    "to_vllm",
    "tools_to_vllm",
]

_TEMPLATE_KWARGS = {"enable_thinking", "thinking", "reasoning_effort"}
_PASSED_ON = [
    "model",
    "logprobs",
    "response_format",
    "parallel_tool_calls",
    "reasoning_effort",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "include_reasoning",
]


def parse(body: JsonObject, limits: LimitsConfig, unknown_fields: UnknownFields) -> CreateChatCompletion:
    """The body, checked. Raises InvalidRequest naming the field, the rule and the fix."""
    request = parse_model(CreateChatCompletion, body, unknown_fields)
    check_sampling(request, limits)
    if request.prediction is not None:
        raise reject(
            "The 'prediction' parameter is not offered: no output is predicted; leave it out.",
            "prediction",
            "unsupported_parameter",
        )
    _check_logprobs(request, limits)
    check_messages(request.messages, limits)
    _check_tools(request, limits)
    if isinstance(request.response_format, JsonSchemaFormat):
        schema = request.response_format.json_schema.schema_
        if schema is None:
            raise reject(
                "Missing required parameter: 'response_format.json_schema.schema'.",
                "response_format",
                "missing_required_parameter",
            )
        check_schema(schema, limits, "response_format")
    for name in request.chat_template_kwargs or {}:
        if name not in _TEMPLATE_KWARGS:
            allowed = ", ".join(sorted(_TEMPLATE_KWARGS))
            raise reject(
                f"Invalid value for 'chat_template_kwargs': {name[:64]!r} is not allowed; allowed: {allowed}.",
                "chat_template_kwargs",
            )
    return request


def to_vllm(request: CreateChatCompletion) -> dict[str, Any]:
    """Keyword arguments of vLLM's ChatCompletionRequest."""
    kwargs = sampling_to_vllm(request)
    for name in _PASSED_ON:
        value = getattr(request, name)
        if value is not None:
            kwargs[name] = value if name != "response_format" else value.model_dump(by_alias=True, exclude_none=True)
    if request.max_tokens_asked is not None:
        kwargs["max_completion_tokens"] = request.max_tokens_asked
    if request.logprobs:
        kwargs["top_logprobs"] = request.top_logprobs or 0
    kwargs["messages"] = list(messages_to_vllm(request.messages))
    kwargs.update(_tools_to_vllm(request))
    return kwargs


def _check_logprobs(request: CreateChatCompletion, limits: LimitsConfig) -> None:
    if request.top_logprobs is None:
        return
    if not request.logprobs:
        raise reject("The 'top_logprobs' parameter is only allowed when 'logprobs' is true.", "top_logprobs")
    if request.top_logprobs > limits.max_logprobs:
        raise reject(f"Invalid value for 'top_logprobs': at most {limits.max_logprobs}.", "top_logprobs")


def check_messages(messages: Iterable[Message], limits: LimitsConfig) -> None:
    """Raises InvalidRequest for media, bad tool calls, and answers to calls that nobody made."""
    open_calls: set[str] = set()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if isinstance(message.content, list):
            for index, part in enumerate(message.content):
                if isinstance(part, MediaPart):
                    raise reject(
                        f"Invalid value for '{where}.content[{index}]': this server takes text only, not {part.type}.",
                        f"{where}.content[{index}].type",
                    )
        if isinstance(message, AssistantMessage):
            for index, call in enumerate(message.tool_calls or []):
                _check_arguments(call.function.arguments, limits, f"{where}.tool_calls[{index}].function.arguments")
                open_calls.add(call.id)
            if not (message.content is not None or message.tool_calls or message.function_call or message.refusal):
                raise reject(
                    f"Invalid value for '{where}.content': an assistant message needs content or tool_calls.",
                    f"{where}.content",
                )
        elif isinstance(message, ToolMessage) and message.tool_call_id not in open_calls:
            raise reject(
                f"Invalid value for '{where}.tool_call_id': no earlier assistant message made that call.",
                f"{where}.tool_call_id",
            )


def _check_arguments(text: str, limits: LimitsConfig, param: str) -> None:
    # The decoder of bodies, so that NaN and lone surrogates are refused here too: templates cannot write them.
    try:
        parsed = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise reject(f"Invalid value for '{param}': must be a JSON object written as a string.", param)
    if depth(parsed) > limits.max_json_depth:
        raise reject(f"Invalid value for '{param}': it nests deeper than {limits.max_json_depth} levels.", param)


def check_offered(tools: list[Tool], limits: LimitsConfig, field: str = "tools") -> None:
    """Raises InvalidRequest for no tools, too many of them, or a schema beyond the limits."""
    if not 1 <= len(tools) <= limits.max_tools:
        raise reject(f"Invalid '{field}': give 1 to {limits.max_tools} entries, or leave the field out.", field)
    for number, tool in enumerate(tools):
        if tool.function.parameters is not None:
            check_schema(tool.function.parameters, limits, f"tools[{number}].function.parameters")


def _check_tools(request: CreateChatCompletion, limits: LimitsConfig) -> None:
    if request.tools is not None and request.functions is not None:
        raise reject("Give either 'tools' or the older 'functions', not both.", "functions")
    offered = _offered(request)
    if request.tools is not None or request.functions is not None:
        check_offered(offered, limits, "tools" if request.functions is None else "functions")
    names = {tool.function.name for tool in offered}
    for param, wanted in _asked_for(request):
        if wanted not in names:
            raise reject(f"Invalid value for '{param}': {wanted[:64]!r} is not among the tools.", param)
    if request.tool_choice not in (None, "none", "auto") and not offered:
        raise reject("The 'tool_choice' parameter is only allowed when 'tools' are given.", "tool_choice")
    if request.parallel_tool_calls is not None and not offered:
        raise reject(
            "The 'parallel_tool_calls' parameter is only allowed when 'tools' are given.", "parallel_tool_calls"
        )


def _asked_for(request: CreateChatCompletion) -> list[tuple[str, str]]:
    choice = request.tool_choice
    if isinstance(choice, NamedToolChoice):
        return [("tool_choice", choice.function.name)]
    if isinstance(choice, AllowedToolsChoice):
        return [("tool_choice", tool.function.name) for tool in choice.allowed_tools.tools]
    if isinstance(request.function_call, FunctionName):
        return [("function_call", request.function_call.name)]
    return []


def _offered(request: CreateChatCompletion) -> list[Tool]:
    if request.functions is not None:
        return [Tool(type="function", function=function) for function in request.functions]
    return request.tools or []


def _tools_to_vllm(request: CreateChatCompletion) -> dict[str, Any]:
    tools = _offered(request)
    if not tools:
        return {}
    choice: Any = request.tool_choice or "auto"
    if request.functions is not None:
        choice = request.function_call or "auto"
        if isinstance(choice, FunctionName):
            choice = NamedToolChoice(type="function", function=choice)
    if isinstance(choice, AllowedToolsChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        tools = [tool for tool in tools if tool.function.name in allowed]
        choice = choice.allowed_tools.mode
    # A forced call is only sure to have an object for arguments when vLLM holds it to the tool's schema.
    forced = choice not in ("auto", "none")
    dumped = tools_to_vllm(tools)
    if forced:
        for tool in dumped:
            tool["function"]["strict"] = True
    return {"tools": dumped, "tool_choice": choice if isinstance(choice, str) else choice.model_dump()}


def tools_to_vllm(tools: list[Tool]) -> list[JsonObject]:
    """The tools as vLLM takes them, each with parameters."""
    dumped = [tool.model_dump(exclude_none=True) for tool in tools]
    for tool in dumped:
        tool["function"].setdefault("parameters", {"type": "object", "properties": {}})
    return dumped


def messages_to_vllm(messages: Iterable[Message]) -> Iterable[JsonObject]:
    """The messages as vLLM's chat template reads them."""
    last_function_call = 0
    for number, message in enumerate(messages):
        if isinstance(message, FunctionMessage):
            yield {
                "role": "tool",
                "content": message.content or "",
                "tool_call_id": f"call_function_{last_function_call}",
            }
            continue
        dumped = message.model_dump(exclude_none=True, exclude={"annotations", "refusal", "function_call"})
        if isinstance(message, AssistantMessage):
            if message.refusal is not None and message.content is None:
                dumped["content"] = message.refusal
            if message.function_call is not None:
                last_function_call = number
                call = {
                    "id": f"call_function_{number}",
                    "type": "function",
                    "function": message.function_call.model_dump(),
                }
                dumped["tool_calls"] = [call]
        if isinstance(message.content, list):
            dumped["content"] = [_text_part(part) for part in message.content]
        yield dumped


def _text_part(part: Any) -> JsonObject:
    text = part.refusal if part.type == "refusal" else part.text
    return {"type": "text", "text": text}
