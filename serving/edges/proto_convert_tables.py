"""Where proto and JSON differ in shape: fields that are "string or object" in JSON, and what extra_json may carry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from burrstone.openai.v1 import common_pb2, completions_pb2, responses_pb2
from burrstone.serving.api.types import JsonObject

PACKAGE = "burrstone.openai.v1"
ReadMessage = Callable[[Message], JsonObject]
FillMessage = Callable[[Message, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Union:
    """`read` gives the JSON of a message with a oneof; `write` fills such a message from JSON."""

    read: Callable[[Any, ReadMessage], Any]
    write: Callable[[Any, Any, FillMessage], None]


# What a request's extra_json may carry: fields the HTTP API takes that have no typed twin. All else is refused.
REQUEST_EXTRAS: dict[str, frozenset[str]] = {
    f"{PACKAGE}.ChatCompletionParams": frozenset(
        {
            "functions",
            "function_call",
            "modalities",
            "prediction",
            "prompt_cache_retention",
            "chat_template_kwargs",
            "add_generation_prompt",
            "continue_final_message",
            "include_reasoning",
        }
    ),
    f"{PACKAGE}.CompletionParams": frozenset({"suffix"}),
    f"{PACKAGE}.ResponseParams": frozenset({"prompt_cache_retention"}),
    f"{PACKAGE}.ResponseItem": frozenset({"phase", "namespace"}),
    # The media fields are let through so that the refusal is the one HTTP gives.
    f"{PACKAGE}.ContentPart": frozenset(
        {
            "annotations",
            "cache_control",
            "image_url",
            "input_audio",
            "file",
            "video_url",
            "audio_url",
            "detail",
            "file_id",
            "file_data",
            "file_url",
            "filename",
        }
    ),
}


def _read_content(content: common_pb2.Content, read: ReadMessage) -> Any:
    kind = content.WhichOneof("content")
    if kind == "parts":
        return [read(part) for part in content.parts.parts]
    return content.text if kind else None


def _write_content(content: common_pb2.Content, value: Any, fill: FillMessage) -> None:
    if isinstance(value, str):
        content.text = value
        return
    content.parts.SetInParent()
    for part in value:
        fill(content.parts.parts.add(), part)


def _read_tool_choice(choice: common_pb2.ToolChoice, read: ReadMessage) -> Any:
    kind = choice.WhichOneof("choice")
    if kind == "function_name":
        return {"type": "function", "function": {"name": choice.function_name}}
    if kind == "allowed_tools":
        return {"type": "allowed_tools", "allowed_tools": read(choice.allowed_tools)}
    return choice.mode if kind else None


def _write_tool_choice(choice: common_pb2.ToolChoice, value: Any, fill: FillMessage) -> None:
    if isinstance(value, str):
        choice.mode = value
    elif value["type"] == "function":
        choice.function_name = value["function"]["name"]
    else:
        choice.allowed_tools.SetInParent()
        fill(choice.allowed_tools, value["allowed_tools"])


def _read_flat_tool_choice(choice: common_pb2.ToolChoice, read: ReadMessage) -> Any:
    """The Responses API keeps the function's name and the allowed tools one level higher."""
    kind = choice.WhichOneof("choice")
    if kind == "function_name":
        return {"type": "function", "name": choice.function_name}
    if kind == "allowed_tools":
        tools = [{"type": tool.type, "name": tool.function.name} for tool in choice.allowed_tools.tools]
        return {"type": "allowed_tools", "mode": choice.allowed_tools.mode, "tools": tools}
    return choice.mode if kind else None


def _write_flat_tool_choice(choice: common_pb2.ToolChoice, value: Any, fill: FillMessage) -> None:
    if isinstance(value, str):
        choice.mode = value
    elif value["type"] == "function":
        choice.function_name = value["name"]
    else:
        choice.allowed_tools.mode = value["mode"]
        for tool in value["tools"]:
            choice.allowed_tools.tools.add(type=tool["type"], function=common_pb2.FunctionName(name=tool["name"]))


def _read_format(wanted: common_pb2.ResponseFormat, read: ReadMessage) -> Any:
    kind = wanted.WhichOneof("format")
    if kind == "json_schema":
        return {"type": kind, "json_schema": read(wanted.json_schema)}
    return {"type": kind} if kind else None


def _write_format(wanted: common_pb2.ResponseFormat, value: Any, fill: FillMessage) -> None:
    child = _format_of(wanted, value["type"])
    if "json_schema" in value:
        fill(child, value["json_schema"])


def _read_flat_format(wanted: common_pb2.ResponseFormat, read: ReadMessage) -> Any:
    """The Responses API keeps the schema beside the type."""
    kind = wanted.WhichOneof("format")
    if kind == "json_schema":
        return {"type": kind} | read(wanted.json_schema)
    return {"type": kind} if kind else None


def _write_flat_format(wanted: common_pb2.ResponseFormat, value: Any, fill: FillMessage) -> None:
    fill(_format_of(wanted, value["type"]), {name: item for name, item in value.items() if name != "type"})


def _format_of(wanted: common_pb2.ResponseFormat, kind: str) -> Message:
    if kind not in ("text", "json_object", "json_schema"):
        raise ValueError(f"response format {kind!r} has no typed field")
    child: Message = getattr(wanted, kind)
    child.SetInParent()
    return child


def _read_prompt(prompt: completions_pb2.Prompt, read: ReadMessage) -> Any:
    kind = prompt.WhichOneof("prompt")
    if kind == "texts":
        return list(prompt.texts.texts)
    if kind == "tokens":
        return list(prompt.tokens.tokens)
    if kind == "token_lists":
        return [list(tokens.tokens) for tokens in prompt.token_lists.lists]
    return prompt.text if kind else None


def _write_prompt(prompt: completions_pb2.Prompt, value: Any, fill: FillMessage) -> None:
    if isinstance(value, str):
        prompt.text = value
    elif value and isinstance(value[0], int):
        prompt.tokens.tokens.extend(value)
    elif value and isinstance(value[0], list):
        for tokens in value:
            prompt.token_lists.lists.add().tokens.extend(tokens)
    else:
        prompt.texts.SetInParent()
        prompt.texts.texts.extend(value)


def _read_input(value: responses_pb2.ResponseInput, read: ReadMessage) -> Any:
    kind = value.WhichOneof("input")
    if kind == "items":
        return [read(item) for item in value.items.items]
    return value.text if kind else None


def _write_input(target: responses_pb2.ResponseInput, value: Any, fill: FillMessage) -> None:
    if isinstance(value, str):
        target.text = value
        return
    target.items.SetInParent()
    for item in value:
        fill(target.items.items.add(), item)


_FLAT_TOOL_CHOICE = Union(_read_flat_tool_choice, _write_flat_tool_choice)

# By message, or by field where one API writes the same message in another way; the field wins.
UNIONS: dict[str, Union] = {
    f"{PACKAGE}.Content": Union(_read_content, _write_content),
    f"{PACKAGE}.ToolChoice": Union(_read_tool_choice, _write_tool_choice),
    f"{PACKAGE}.ResponseFormat": Union(_read_format, _write_format),
    f"{PACKAGE}.Prompt": Union(_read_prompt, _write_prompt),
    f"{PACKAGE}.ResponseInput": Union(_read_input, _write_input),
    f"{PACKAGE}.ResponseParams.tool_choice": _FLAT_TOOL_CHOICE,
    f"{PACKAGE}.Response.tool_choice": _FLAT_TOOL_CHOICE,
    f"{PACKAGE}.ResponseText.format": Union(_read_flat_format, _write_flat_format),
}
