"""The shapes that are sent for every token, built without the tables. Anything else goes through them."""

from burrstone.openai.v1 import chat_pb2, completions_pb2, responses_pb2
from burrstone.serving.api.types import JsonObject
from burrstone.serving.edges.proto_convert import from_json

_CHAT = {"id", "object", "created", "model", "choices", "service_tier"}
_CHAT_WITH_USAGE = _CHAT | {"usage"}
_CHAT_CHOICE = {"index", "delta", "logprobs", "finish_reason"}
_COMPLETION = {"id", "object", "created", "model", "choices"}
_COMPLETION_WITH_USAGE = _COMPLETION | {"usage"}
_COMPLETION_CHOICE = {"index", "text", "logprobs", "finish_reason"}
_TEXT_DELTA = {"type", "sequence_number", "item_id", "output_index", "content_index", "delta", "logprobs"}


def chat_chunk(body: JsonObject) -> chat_pb2.StreamChatCompletionResponse:
    """A chat chunk; hot when it is one piece of text."""
    choices = body["choices"]
    names = body.keys()
    if len(choices) == 1 and (names == _CHAT or (names == _CHAT_WITH_USAGE and body["usage"] is None)):
        choice = choices[0]
        delta = choice["delta"]
        hot = choice.keys() == _CHAT_CHOICE and choice["finish_reason"] is None and choice["logprobs"] is None
        if hot and len(delta) == 1 and "content" in delta:
            chunk = chat_pb2.StreamChatCompletionResponse(
                id=body["id"],
                object=body["object"],
                created=body["created"],
                model=body["model"],
                service_tier=body["service_tier"],
            )
            # Filling an added choice takes half the time of constructing nested messages.
            target = chunk.choices.add()
            target.index = choice["index"]
            target.delta.content = delta["content"]
            return chunk
    return from_json(chat_pb2.StreamChatCompletionResponse, body)


def completion_chunk(body: JsonObject) -> completions_pb2.StreamCompletionResponse:
    """A completion chunk; hot when it is one piece of text."""
    choices = body["choices"]
    names = body.keys()
    if len(choices) == 1 and (names == _COMPLETION or (names == _COMPLETION_WITH_USAGE and body["usage"] is None)):
        choice = choices[0]
        hot = choice.keys() == _COMPLETION_CHOICE and choice["finish_reason"] is None and choice["logprobs"] is None
        if hot:
            chunk = completions_pb2.StreamCompletionResponse(
                id=body["id"], object=body["object"], created=body["created"], model=body["model"]
            )
            target = chunk.choices.add()
            target.index = choice["index"]
            target.text = choice["text"]
            return chunk
    return from_json(completions_pb2.StreamCompletionResponse, body)


def response_event(body: JsonObject) -> responses_pb2.StreamResponseResponse:
    """An event of the Responses API; hot when it is a piece of output text."""
    if body.keys() == _TEXT_DELTA and not body["logprobs"]:
        return responses_pb2.StreamResponseResponse(
            type=body["type"],
            sequence_number=body["sequence_number"],
            item_id=body["item_id"],
            output_index=body["output_index"],
            content_index=body["content_index"],
            delta=body["delta"],
        )
    return from_json(responses_pb2.StreamResponseResponse, body)
