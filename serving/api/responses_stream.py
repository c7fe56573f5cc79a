"""Chat chunks -> the events of the Responses API, and the response object they add up to."""

import copy
import time

from burrstone.batching.errors import ServeError
from burrstone.serving.api.responses_convert import new_id, response_usage
from burrstone.serving.api.types import Event, JsonObject
from burrstone.serving.status import error_body


class ResponseBuilder:
    """Feed it chat chunks; it returns events and keeps `response` up to date. At most one output item is open."""

    def __init__(self, response: JsonObject) -> None:
        self.response = response
        self._sequence = 0
        self._item: JsonObject | None = None
        self._parts: list[str] = []
        self._logprobs: list[JsonObject] = []
        self._usage: JsonObject | None = None
        self._finish = "stop"

    def start(self) -> list[Event]:
        self.response["status"] = "in_progress"
        return [self._of_response("response.created"), self._of_response("response.in_progress")]

    def grow(self, chunk: JsonObject) -> list[Event]:
        events: list[Event] = []
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            if delta.get("reasoning"):
                events += self._reasoning(delta["reasoning"])
            if delta.get("content"):
                events += self._text(delta["content"], logprobs)
            for call in delta.get("tool_calls") or []:
                events += self._call(call)
            if choice["finish_reason"] is not None:
                self._finish = choice["finish_reason"]
        return events

    def finish(self) -> list[Event]:
        """Close what is open and say how it ended: completed, or incomplete when tokens ran out."""
        cut = self._finish in ("length", "content_filter")
        events = [] if self.response["output"] or self._item else self._begin_message()
        events += self._close("incomplete" if cut else "completed")
        if self._usage is not None:
            self.response["usage"] = response_usage(self._usage)
        if cut:
            reason = "max_output_tokens" if self._finish == "length" else "content_filter"
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
            return [*events, self._of_response("response.incomplete")]
        self.response |= {"status": "completed", "completed_at": int(time.time())}
        return [*events, self._of_response("response.completed")]

    def cancel(self) -> None:
        self._close("incomplete")
        self.response["status"] = "cancelled"

    def _text(self, text: str, logprobs: list[JsonObject]) -> list[Event]:
        events = [] if self._item and self._item["type"] == "message" else self._begin_message()
        self._parts.append(text)
        self._logprobs += logprobs
        return [*events, self._of_part("response.output_text.delta", delta=text, logprobs=logprobs)]

    def _begin_message(self) -> list[Event]:
        item = {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        events = self._begin(item)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [*events, self._of_part("response.content_part.added", part=part)]

    def _reasoning(self, text: str) -> list[Event]:
        events: list[Event] = []
        if not (self._item and self._item["type"] == "reasoning"):
            item = {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
            events = self._begin(item)
            part = {"type": "reasoning_text", "text": ""}
            events.append(self._of_part("response.content_part.added", part=part))
        self._parts.append(text)
        return [*events, self._of_part("response.reasoning_text.delta", delta=text)]

    def _call(self, call: JsonObject) -> list[Event]:
        events: list[Event] = []
        function = call["function"]
        if call.get("id") is not None:
            item = {
                "id": new_id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": call["id"],
                "name": function["name"],
                "arguments": "",
            }
            events = self._begin(item)
        if function["arguments"]:
            self._parts.append(function["arguments"])
            events.append(self._of_item("response.function_call_arguments.delta", delta=function["arguments"]))
        return events

    def _begin(self, item: JsonObject) -> list[Event]:
        events = self._close("completed")
        self._item, self._parts, self._logprobs = item, [], []
        added = self._event("response.output_item.added", output_index=self._index, item=copy.deepcopy(item))
        return [*events, added]

    def _close(self, status: str) -> list[Event]:
        item = self._item
        if item is None:
            return []
        text = "".join(self._parts)
        events: list[Event] = []
        if item["type"] == "message":
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}
            events.append(self._of_part("response.output_text.done", text=text, logprobs=self._logprobs))
            events.append(self._of_part("response.content_part.done", part=part))
            item["content"] = [part]
        elif item["type"] == "reasoning":
            part = {"type": "reasoning_text", "text": text}
            events.append(self._of_part("response.reasoning_text.done", text=text))
            events.append(self._of_part("response.content_part.done", part=part))
            item["content"] = [part]
        else:
            item["arguments"] = text or "{}"
            events.append(
                self._of_item("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])
            )
        item["status"] = status
        events.append(self._event("response.output_item.done", output_index=self._index, item=copy.deepcopy(item)))
        self.response["output"].append(item)
        self._item = None
        return events

    @property
    def _index(self) -> int:
        return len(self.response["output"])

    def _of_response(self, kind: str) -> Event:
        return self._event(kind, response=copy.deepcopy(self.response))

    def _of_item(self, kind: str, **fields: object) -> Event:
        item_id = self._item["id"] if self._item else None
        return self._event(kind, item_id=item_id, output_index=self._index, **fields)

    def _of_part(self, kind: str, **fields: object) -> Event:
        return self._of_item(kind, content_index=0, **fields)

    def _event(self, kind: str, **fields: object) -> Event:
        event = Event({"type": kind, "sequence_number": self._sequence, **fields}, kind)
        self._sequence += 1
        return event


def failed_event(response: JsonObject, error: ServeError, sequence_number: int) -> Event:
    """Mark the response as failed; the last event of its stream."""
    detail = error_body(error)["error"]
    response |= {"status": "failed", "error": {"code": detail["code"] or "server_error", "message": detail["message"]}}
    kind = "response.failed"
    return Event({"type": kind, "sequence_number": sequence_number, "response": copy.deepcopy(response)}, kind)


def output_messages(response: JsonObject) -> list[JsonObject]:
    """A response's output as chat messages, for the next turn. Reasoning stays behind."""
    messages: list[JsonObject] = []
    for item in response["output"]:
        if item["type"] == "message":
            messages.append({"role": "assistant", "content": item["content"][0]["text"]})
        elif item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "tool_calls": [call]})
    return messages
