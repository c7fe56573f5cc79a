"""Chat completions' answer -> an Anthropic message, whole or as events."""

import json
import uuid

from burrstone.serving.api.types import Event, JsonObject, Stream

_DIRECT = {"type": "direct"}  # the model itself calls, no server-side tool does
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def from_chat(reply: JsonObject) -> JsonObject:
    """One message object."""
    choice = reply["choices"][0]
    message = choice["message"]
    calls = message.get("tool_calls") or []
    content: list[JsonObject] = []
    if message.get("content") or not calls:
        content.append({"type": "text", "text": message.get("content") or "", "citations": None})
    for call in calls:
        function = call["function"]
        content.append(
            {
                "type": "tool_use",
                "caller": _DIRECT,
                "id": call["id"],
                "name": function["name"],
                "input": _input(function),
            }
        )
    return _message(reply["model"]) | {
        "content": content,
        "usage": _usage(reply["usage"]),
        **_stop(choice["finish_reason"], choice.get("stop_reason"), called=bool(calls)),
    }


async def from_chat_stream(events: Stream, model: str) -> Stream:
    """message_start, then blocks that open, grow and close in order, message_delta, message_stop."""
    blocks = _Blocks()
    finish: str | None = None
    matched: str | int | None = None
    usage: JsonObject = {}
    try:
        started = False
        async for event in events:
            if not started:
                start = _message(model) | {
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "stop_details": None,
                    "usage": _usage(event.data.get("usage") or {}),
                }
                yield Event({"type": "message_start", "message": start}, "message_start")
                started = True
            usage = event.data.get("usage") or usage
            for choice in event.data["choices"]:
                finish = choice["finish_reason"] or finish
                matched = choice.get("stop_reason") if choice["finish_reason"] else matched
                for produced in blocks.grow(choice["delta"]):
                    yield produced
        for produced in blocks.close():
            yield produced
        delta = _stop(finish or "stop", matched, called=blocks.called)
        yield Event({"type": "message_delta", "delta": delta, "usage": _usage(usage)}, "message_delta")
        yield Event({"type": "message_stop"}, "message_stop")
    finally:
        await events.aclose()


class _Blocks:
    """Content blocks of a growing message: at most one is open, and it closes before the next opens."""

    def __init__(self) -> None:
        self.called = False
        self._index = -1
        self._open: str | None = None

    def grow(self, delta: JsonObject) -> list[Event]:
        events: list[Event] = []
        if delta.get("content"):
            if self._open != "text":
                events += self._begin("text", {"type": "text", "text": "", "citations": None})
            events.append(self._delta({"type": "text_delta", "text": delta["content"]}))
        for call in delta.get("tool_calls") or []:
            function = call["function"]
            if call.get("id") is not None:
                self.called = True
                block = {"type": "tool_use", "caller": _DIRECT, "id": call["id"], "name": function["name"], "input": {}}
                events += self._begin("tool_use", block)
            if function["arguments"]:
                events.append(self._delta({"type": "input_json_delta", "partial_json": function["arguments"]}))
        return events

    def close(self) -> list[Event]:
        """Close what is open. A message without any block gets an empty text block."""
        events = self._begin("text", {"type": "text", "text": "", "citations": None}) if self._index < 0 else []
        return events + self._end()

    def _begin(self, kind: str, block: JsonObject) -> list[Event]:
        events = self._end()
        self._index += 1
        self._open = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*events, Event(start, "content_block_start")]

    def _delta(self, delta: JsonObject) -> Event:
        return Event({"type": "content_block_delta", "index": self._index, "delta": delta}, "content_block_delta")

    def _end(self) -> list[Event]:
        if self._open is None:
            return []
        self._open = None
        return [Event({"type": "content_block_stop", "index": self._index}, "content_block_stop")]


def _input(function: JsonObject) -> JsonObject:
    """Arguments as an object; a call that the token limit cut short has none, and stop_reason says max_tokens."""
    try:
        parsed = json.loads(function["arguments"] or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _message(model: str) -> JsonObject:
    return {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model, "container": None}


def _stop(finish: str, matched: str | int | None, *, called: bool) -> JsonObject:
    if called and finish in ("stop", "tool_calls"):
        return {"stop_reason": "tool_use", "stop_sequence": None, "stop_details": None}
    if finish == "stop" and isinstance(matched, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": matched, "stop_details": None}
    return {"stop_reason": _STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None, "stop_details": None}


def _usage(usage: JsonObject) -> JsonObject:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": (usage.get("prompt_tokens") or 0) - cached,
        "output_tokens": usage.get("completion_tokens") or 0,
        "output_tokens_details": None,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "cache_creation": None,
        "inference_geo": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }
