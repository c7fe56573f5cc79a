"""Chat chunks -> the events of the Responses API, and the response object they add up to."""

import copy
import time

from burrstone.batching.errors import InvalidRequest, Overloaded, ServeError
from burrstone.serving.api.responses_convert import response_usage
from burrstone.serving.api.responses_input import new_id
from burrstone.serving.api.types import Event, JsonObject


class ResponseBuilder:
    """Feed it chat chunks; it returns events and keeps `response` up to date. At most one output item is open."""

    def __init__(self, response: JsonObject) -> None:
        self.response = response
        self.started = False
        self._sequence = 0
        self._item: JsonObject | None = None
        self._parts: list[str] = []
        self._logprobs: list[JsonObject] = []
        self._held_logprobs: list[JsonObject] = []  # of tokens whose text is still to come
        self._usage: JsonObject | None = None
        self._finish = "stop"

    def start(self) -> list[Event]:
        self.started = True
        self.response["status"] = "in_progress"
        return [self._of_response("response.created"), self._of_response("response.in_progress")]

    def grow(self, chunk: JsonObject) -> list[Event]:
        events: list[Event] = []
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content") is not None:
                self._held_logprobs += (choice.get("logprobs") or {}).get("content") or []
            if delta.get("reasoning"):
                events += self._reasoning(delta["reasoning"])
            if delta.get("content"):
                events += self._text(delta["content"])
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

    def fail(self, error: ServeError) -> list[Event]:
        """Close what is open and say why it failed; the last event of the stream."""
        events = [] if self.started else self.start()
        events += self._close("incomplete")
        # `code` is a closed list in the specification; clients that validate refuse any other word.
        code = "server_error"
        if isinstance(error, Overloaded):
            code = "rate_limit_exceeded"
        elif isinstance(error, InvalidRequest):
            code = "invalid_prompt"
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        return [*events, self._of_response("response.failed")]

    def cancel(self) -> list[Event]:
        """Close what is open. The specification has no event for a cancelled response, so the stream just ends."""
        events = self._close("incomplete")
        self.response["status"] = "cancelled"
        return events

    def _text(self, text: str) -> list[Event]:
        events = [] if self._item and self._item["type"] == "message" else self._begin_message()
        logprobs, self._held_logprobs = self._held_logprobs, []
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
            # A whole call without arguments has none to give; one that was cut short stays as it is.
            item["arguments"] = text or ("{}" if status == "completed" else "")
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
