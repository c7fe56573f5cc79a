"""Chat completions: vLLM's answer -> what OpenAI's specification and SDKs expect."""

import re
from collections.abc import AsyncGenerator, Callable, Collection

from burrstone.serving.api.chat_schema import CreateChatCompletion
from burrstone.serving.api.sampling import num_copies
from burrstone.serving.api.types import Event, JsonObject, Stream

# The start of a Hermes tool call that the token limit cut short, at the end of the text.
_CUT_CALL = re.compile(r"\s*<(?:t(?:o(?:o(?:l(?:_(?:c(?:a(?:l(?:l(?:>.*)?)?)?)?)?)?)?)?)?)?$", re.DOTALL)


def fix_usage(usage: JsonObject, copies: int = 1) -> JsonObject:
    """Usage with every detail present; `copies` counts a choice that the answer repeats."""
    prompt = usage.get("prompt_tokens") or 0
    completion = (usage.get("completion_tokens") or 0) * copies
    prompt_details = usage.get("prompt_tokens_details") or {}
    completion_details = usage.get("completion_tokens_details") or {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": prompt_details.get("cached_tokens") or 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": completion_details.get("reasoning_tokens") or 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def fix_response(raw: JsonObject, request: CreateChatCompletion, *, keep_stop_reason: bool = False) -> JsonObject:
    """One chat.completion object."""
    copies = num_copies(request)
    choices = [_choice(choice, request, keep_stop_reason) for choice in raw["choices"]]
    if copies > 1:
        choices = [choices[0] | {"index": index} for index in range(copies)]
    fixed: JsonObject = {
        "id": raw["id"],
        "object": "chat.completion",
        "created": raw["created"],
        "model": request.model,
        "choices": choices,
        "usage": fix_usage(raw["usage"], copies),
        "service_tier": "default",
    }
    if raw.get("system_fingerprint"):
        fixed["system_fingerprint"] = raw["system_fingerprint"]
    if request.metadata is not None:
        fixed["metadata"] = request.metadata
    if request.return_token_ids:
        fixed["prompt_token_ids"] = raw.get("prompt_token_ids")
    return fixed


def calls_no_tool(request: CreateChatCompletion, finish_reasons: Collection[str]) -> bool:
    """Whether the model could have called a tool and answered instead; an agent takes that for its last answer."""
    could = (
        bool(request.tools or request.functions) and (request.tool_choice or request.function_call or "auto") == "auto"
    )
    return could and bool(finish_reasons) and all(reason == "stop" for reason in finish_reasons)


async def fix_stream(
    chunks: AsyncGenerator[JsonObject, None],
    request: CreateChatCompletion,
    *,
    keep_stop_reason: bool = False,
    on_finish: Callable[[list[str]], None] = lambda reasons: None,
) -> Stream:
    """chat.completion.chunk events; usage comes once, last, and only when it was asked for.

    on_finish: told the finish reasons so far, before the client is told of another.
    """
    state = _StreamState(request, keep_stop_reason)
    try:
        async for chunk in chunks:
            finished = len(state.finish_reasons)
            fixed = state.fix(chunk)
            if len(state.finish_reasons) > finished:
                on_finish(state.finish_reasons)
            if fixed is not None:
                yield Event(fixed)
    finally:
        await chunks.aclose()


def _choice(raw: JsonObject, request: CreateChatCompletion, keep_stop_reason: bool) -> JsonObject:
    message = raw["message"]
    fixed: JsonObject = {
        "role": "assistant",
        "content": message.get("content"),
        "refusal": None,
        "annotations": [],
    }
    if message.get("reasoning"):
        fixed["reasoning"] = message["reasoning"]
    finish = raw.get("finish_reason") or "stop"
    calls = [_whole_call(call) for call in message.get("tool_calls") or []]
    if request.parallel_tool_calls is False:
        calls = calls[:1]
    if calls and request.functions is not None:
        fixed["function_call"] = calls[0]["function"]
        finish = "function_call" if finish == "tool_calls" else finish
    elif calls:
        fixed["tool_calls"] = calls
        fixed["content"] = fixed["content"] or None
    elif finish == "tool_calls":
        finish = "stop"
    if finish == "length" and fixed["content"] and (request.tools or request.functions):
        fixed["content"] = _CUT_CALL.sub("", fixed["content"])
    if not calls and fixed["content"] is None:
        fixed["content"] = ""
    choice = {
        "index": raw["index"],
        "message": fixed,
        "logprobs": _logprobs(raw.get("logprobs")),
        "finish_reason": _finish_reason(finish),
    }
    return choice | _extras(raw, request, keep_stop_reason)


def _whole_call(call: JsonObject) -> JsonObject:
    function = call["function"]
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": function["arguments"] or "{}"},
    }


def _logprobs(raw: JsonObject | None) -> JsonObject | None:
    return None if raw is None else {"content": raw.get("content") or [], "refusal": None}


def _finish_reason(reason: str) -> str:
    """Only OpenAI's values: clients refuse any other."""
    known = ("stop", "length", "tool_calls", "content_filter", "function_call")
    return reason if reason in known else "stop"


def _extras(raw: JsonObject, request: CreateChatCompletion, keep_stop_reason: bool) -> JsonObject:
    extras: JsonObject = {}
    if keep_stop_reason:
        extras["stop_reason"] = raw.get("stop_reason")
    if request.return_token_ids:
        extras["token_ids"] = raw.get("token_ids")
    return extras


class _StreamState:
    """What must be remembered from one chunk to the next. `fix` runs once for every token."""

    def __init__(self, request: CreateChatCompletion, keep_stop_reason: bool) -> None:
        self._request = request
        self._keep_stop_reason = keep_stop_reason
        self._copies = num_copies(request)
        self._usage_wanted = bool(request.stream_options and request.stream_options.include_usage)
        self._called: set[tuple[int, int]] = set()
        self.finish_reasons: list[str] = []
        self._one_call = request.parallel_tool_calls is False or request.functions is not None

    def fix(self, chunk: JsonObject) -> JsonObject | None:
        choices = [kept for choice in chunk["choices"] if (kept := self._choice(choice)) is not None]
        usage = chunk.get("usage")
        if chunk["choices"] and not choices:
            return None
        if self._copies > 1 and choices:
            choices = [choice | {"index": index} for choice in choices for index in range(self._copies)]
        fixed: JsonObject = {
            "id": chunk["id"],
            "object": "chat.completion.chunk",
            "created": chunk["created"],
            "model": self._request.model,
            "choices": choices,
            "service_tier": "default",
        }
        if chunk.get("system_fingerprint"):
            fixed["system_fingerprint"] = chunk["system_fingerprint"]
        if self._usage_wanted:
            fixed["usage"] = None if usage is None else fix_usage(usage, self._copies)
        return fixed

    def _choice(self, raw: JsonObject) -> JsonObject | None:
        index = raw["index"]
        finish = raw.get("finish_reason")
        delta = self._delta(index, raw["delta"])
        logprobs = raw.get("logprobs")
        if not delta and finish is None and logprobs is None:
            return None
        if finish is not None:
            finish = self._finish(index, finish)
            self.finish_reasons.append(finish)
        choice = {"index": index, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": finish}
        if self._keep_stop_reason or self._request.return_token_ids:
            choice |= _extras(raw, self._request, self._keep_stop_reason)
        return choice

    def _delta(self, index: int, raw: JsonObject) -> JsonObject:
        delta: JsonObject = {}
        role, content, calls = raw.get("role"), raw.get("content"), raw.get("tool_calls")
        if role is not None:
            delta["role"] = role
        if content is not None:
            delta["content"] = content
        if raw.get("reasoning"):
            delta["reasoning"] = raw["reasoning"]
        if calls:
            kept = [fixed for call in calls if (fixed := self._call(index, call)) is not None]
            if kept and self._request.functions is not None:
                delta["function_call"] = kept[0]["function"]
            elif kept:
                delta["tool_calls"] = kept
        return delta

    def _call(self, choice_index: int, raw: JsonObject) -> JsonObject | None:
        """First delta of a call: index, id, type, name, arguments. Later ones: index and arguments only."""
        number = raw.get("index") or 0
        if self._one_call and number > 0:
            return None
        function = raw.get("function") or {}
        arguments = function.get("arguments") or ""
        if (choice_index, number) in self._called:
            return {"index": number, "function": {"arguments": arguments}}
        self._called.add((choice_index, number))
        return {
            "index": number,
            "id": raw.get("id"),
            "type": "function",
            "function": {"name": function.get("name"), "arguments": arguments},
        }

    def _finish(self, index: int, reason: str) -> str:
        called = any(choice_index == index for choice_index, _ in self._called)
        if reason == "tool_calls" and not called:
            return "stop"
        if reason == "tool_calls" and self._request.functions is not None:
            return "function_call"
        return _finish_reason(reason)
