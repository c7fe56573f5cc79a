"""The items of a Responses request: as chat messages for the engine, and as the list a caller can read back."""

import json
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from burrstone.serving.api.base import reject
from burrstone.serving.api.responses_schema import (
    CreateResponse,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputMediaPart,
    Item,
    ItemReference,
    MessageItem,
    ReasoningItem,
)
from burrstone.serving.api.types import JsonObject

_ITEM: TypeAdapter[Item] = TypeAdapter(Item)
_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def resolve_input(request: CreateResponse, find_item: Callable[[str], JsonObject]) -> list[Item]:
    """The input as items; `find_item` gives the stored item that a reference names."""
    if isinstance(request.input, str):
        return [MessageItem(role="user", content=request.input)]
    return [
        _ITEM.validate_python(find_item(item.id)) if isinstance(item, ItemReference) else item for item in request.input
    ]


def input_messages(items: list[Item], history: list[JsonObject]) -> list[JsonObject]:
    """The items as chat messages that follow `history`. Raises InvalidRequest naming the item."""
    messages: list[JsonObject] = []
    call_ids = {call["id"] for message in history for call in message.get("tool_calls", [])}
    for number, item in enumerate(items):
        where = f"input[{number}]"
        if isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": _text(item.content, f"{where}.content")})
        elif isinstance(item, FunctionCallItem):
            if not _is_object(item.arguments):
                raise reject(
                    f"Invalid value for '{where}.arguments': must be a JSON object written as a string.",
                    f"{where}.arguments",
                )
            _add_call(messages, item.call_id, item.name, item.arguments)
            call_ids.add(item.call_id)
        elif isinstance(item, FunctionCallOutputItem):
            if item.call_id not in call_ids:
                raise reject(
                    f"No tool call found for function call output with call_id {item.call_id[:64]!r}.",
                    f"{where}.call_id",
                )
            text = _text(item.output, f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        # A reasoning item is the model's own note to itself; chat templates drop earlier turns' reasoning too.
    if not messages:
        raise reject("Invalid value for 'input': it holds no message.", "input")
    return messages


def output_messages(output: list[JsonObject]) -> list[JsonObject]:
    """A response's output as chat messages, for the next turn. Reasoning and a call cut short stay behind."""
    messages: list[JsonObject] = []
    for item in output:
        if item["type"] == "message":
            messages.append({"role": "assistant", "content": item["content"][0]["text"]})
        elif item["type"] == "function_call" and _is_object(item["arguments"]):
            _add_call(messages, item["call_id"], item["name"], item["arguments"])
    return messages


def listed_items(items: list[Item]) -> list[JsonObject]:
    """The items as GET /v1/responses/{id}/input_items shows them, each with an id."""
    listed = []
    for item in items:
        shown = item.model_dump(exclude_none=True)
        shown.setdefault("id", new_id(_ID_PREFIXES[item.type]))
        shown.setdefault("status", "completed")
        if isinstance(item, MessageItem):
            shown["content"] = _listed_parts(item)
        elif isinstance(item, ReasoningItem):
            shown.setdefault("summary", [])
        listed.append(shown)
    return listed


def _listed_parts(item: MessageItem) -> list[JsonObject]:
    if isinstance(item.content, str):
        parts: list[JsonObject] = [{"type": "text", "text": item.content}]
    else:
        parts = [part.model_dump(exclude_none=True) for part in item.content]
    kind = {"type": "output_text"} if item.role == "assistant" else {"type": "input_text"}
    added: JsonObject = {"annotations": [], "logprobs": []} if item.role == "assistant" else {}
    return [added | part | kind if "text" in part else part for part in parts]


def _add_call(messages: list[JsonObject], call_id: str, name: str, arguments: str) -> None:
    """Text and calls that follow each other were one answer, so they are one assistant message again."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages[-1].setdefault("tool_calls", []).append(call)


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


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
