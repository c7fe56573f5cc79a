"""Anthropic's turns as chat messages: equal neighbours joined, tool results as messages of their own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from burrstone.serving.api.base import reject
from burrstone.serving.api.messages_schema import (
    InputMessage,
    MediaBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from burrstone.serving.api.types import JsonObject


def turns(messages: Sequence[InputMessage]) -> list[JsonObject]:
    """Chat messages of the conversation. Raises InvalidRequest for a tool call and a result that do not meet."""
    chat: list[JsonObject] = []
    unanswered: list[str] = []
    for turn in _joined(messages):
        if turn.role == "assistant":
            _refuse_unanswered(unanswered, turn.where)
            unanswered = [call["id"] for call in turn.calls]
            chat.append(_assistant(turn))
            continue
        for path, result in turn.results:
            if result.tool_use_id not in unanswered:
                raise reject(
                    f"{path}: unexpected tool_use_id {result.tool_use_id[:64]!r}: the previous message has no such "
                    "tool_use block, or its result was given already.",
                    f"{path}.tool_use_id",
                )
            unanswered.remove(result.tool_use_id)
            chat.append({"role": "tool", "tool_call_id": result.tool_use_id, "content": _result_text(result, path)})
        _refuse_unanswered(unanswered, turn.where)
        if turn.texts or not turn.results:
            chat.append({"role": "user", "content": "\n".join(turn.texts)})
    _refuse_unanswered(unanswered, "messages")
    return chat


@dataclass(slots=True)
class _Turn:
    role: str
    where: str
    texts: list[str] = field(default_factory=list)
    calls: list[JsonObject] = field(default_factory=list)
    results: list[tuple[str, ToolResultBlock]] = field(default_factory=list)


def _joined(messages: Sequence[InputMessage]) -> list[_Turn]:
    """Messages of one role that follow each other are one turn."""
    found: list[_Turn] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not found or found[-1].role != message.role:
            found.append(_Turn(message.role, where))
        _add(found[-1], message, where)
    return found


def _add(turn: _Turn, message: InputMessage, where: str) -> None:
    if isinstance(message.content, str):
        turn.texts.append(message.content)
        return
    for index, block in enumerate(message.content):
        path = f"{where}.content[{index}]"
        if isinstance(block, MediaBlock):
            raise reject(f"{path}: this server takes text only, not {block.type}.", f"{path}.type")
        if isinstance(block, TextBlock):
            turn.texts.append(block.text)
        elif isinstance(block, ToolUseBlock):
            _require_role(turn, "assistant", path)
            arguments = json.dumps(block.input, ensure_ascii=False)
            function = {"name": block.name, "arguments": arguments}
            turn.calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResultBlock):
            _require_role(turn, "user", path)
            turn.results.append((path, block))
        # Thinking is the model's own note to itself; chat templates drop earlier turns' thinking too.


def _assistant(turn: _Turn) -> JsonObject:
    message: JsonObject = {"role": "assistant"}
    if turn.texts or not turn.calls:
        message["content"] = "\n".join(turn.texts)
    if turn.calls:
        message["tool_calls"] = turn.calls
    return message


def _require_role(turn: _Turn, role: str, path: str) -> None:
    if turn.role != role:
        raise reject(f"{path}: such a block belongs to the {role}.", path)


def _refuse_unanswered(call_ids: list[str], where: str) -> None:
    if call_ids:
        raise reject(
            f"{where}: tool_use ids without a tool_result block in the next message: "
            f"{', '.join(call_id[:64] for call_id in call_ids[:8])}.",
            where,
        )


def _result_text(block: ToolResultBlock, path: str) -> str:
    """Chat has no flag for a tool that failed, so the text says it."""
    content = block.content or ""
    if not isinstance(content, str):
        for part in content:
            if isinstance(part, MediaBlock):
                raise reject(f"{path}.content: this server takes text only, not {part.type}.", f"{path}.content")
        content = "\n".join(part.text for part in content)
    return f"Error: {content}" if block.is_error else content
