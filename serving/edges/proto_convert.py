"""proto <-> the HTTP API's JSON, driven by the message descriptors and a short table of exceptions.

A proto field has its JSON field's name. The exceptions: unions that JSON writes as "string or object" (_UNIONS), enums
(ROLE_USER <-> "user"), fields ending in `_json` (JSON text of the field without that ending), `vllm` (its fields lie
beside the others in JSON), and `extra_json` (fields without a typed twin).
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from burrstone.batching.errors import InvalidRequest
from burrstone.openai.v1 import chat_pb2, common_pb2, completions_pb2, responses_pb2
from burrstone.serving.api.types import JsonObject

MessageT = TypeVar("MessageT", bound=Message)
_JSON_SUFFIX = "_json"
_EXTRA = "extra_json"
_FLATTENED = "vllm"


def to_json(message: Message) -> JsonObject:
    """The JSON object of a message; unset fields are left out. Raises InvalidRequest for an unknown enum value."""
    body: JsonObject = {}
    for field in _fields(message.DESCRIPTOR):
        if not _is_set(message, field):
            continue
        value = getattr(message, field.name)
        if field.name == _EXTRA:
            _merge_extra(body, message, value)
        elif field.name == _FLATTENED:
            body |= to_json(value)
        elif _is_json_text(field):
            body[field.name.removesuffix(_JSON_SUFFIX)] = _load(field.name, value)
        else:
            body[field.name] = _value_to_json(field, value)
    return body


def from_json(cls: type[MessageT], body: Mapping[str, Any]) -> MessageT:
    """The message of a JSON object. Nulls are left unset; what has no field goes into extra_json."""
    message = cls()
    _fill(message, body)
    return message


def stream_chunk(body: JsonObject) -> chat_pb2.StreamChatCompletionResponse:
    """One chat chunk. The common one (a piece of text and nothing else) is built directly: it runs for every token."""
    choices = body["choices"]
    if len(choices) == 1 and "usage" not in body:
        choice = choices[0]
        delta = choice["delta"]
        if choice["finish_reason"] is None and choice["logprobs"] is None and delta.keys() == {"content"}:
            return chat_pb2.StreamChatCompletionResponse(
                id=body["id"],
                object="chat.completion.chunk",
                created=body["created"],
                model=body["model"],
                service_tier=body["service_tier"],
                choices=[
                    chat_pb2.ChatChunkChoice(index=choice["index"], delta=chat_pb2.ChatDelta(content=delta["content"]))
                ],
            )
    return from_json(chat_pb2.StreamChatCompletionResponse, body)


def typed_names(descriptor: Descriptor) -> frozenset[str]:
    """JSON names that a message has fields for, the flattened ones included."""
    return _typed_names(descriptor)


def _fill(message: Message, body: Mapping[str, Any]) -> None:
    by_name = _by_json_name(message.DESCRIPTOR)
    flattened = message.DESCRIPTOR.fields_by_name.get(_FLATTENED)
    inner = _by_json_name(flattened.message_type) if flattened is not None and flattened.message_type else {}
    nested: JsonObject = {}
    for name, value in body.items():
        if value is None:
            continue
        field = by_name.get(name)
        if field is not None:
            _set(message, field, value)
        elif name in inner:
            nested[name] = value
        elif _EXTRA in message.DESCRIPTOR.fields_by_name:
            getattr(message, _EXTRA)[name] = msgspec.json.encode(value).decode()
        else:
            raise ValueError(f"{message.DESCRIPTOR.full_name} has no field for {name!r}")
    if nested:
        _fill(getattr(message, _FLATTENED), nested)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if _is_json_text(field):
        setattr(message, field.name, msgspec.json.encode(value).decode())
    elif _is_map(field):
        target = getattr(message, field.name)
        integer = _key_type(field) != FieldDescriptor.CPPTYPE_STRING
        target.update({int(key) if integer else key: item for key, item in value.items()})
    elif field.is_repeated:
        target = getattr(message, field.name)
        items: list[Any] = [value] if isinstance(value, str) else value  # `stop` may be one string
        if field.message_type is None:
            target.extend(items)
            return
        for item in items:
            _fill(target.add(), item)
    elif field.message_type is not None:
        union = _UNIONS.get(field.message_type.full_name)
        child = getattr(message, field.name)
        child.SetInParent()
        union[1](child, value) if union is not None else _fill(child, value)
    elif field.enum_type is not None:
        setattr(message, field.name, _enum_numbers(field.enum_type)[value])
    else:
        setattr(message, field.name, value)


def _key_type(field: FieldDescriptor) -> int:
    entry: Any = field.message_type
    key_type: int = entry.fields_by_name["key"].cpp_type
    return key_type


def _value_to_json(field: FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        return {str(key): item for key, item in value.items()}
    if field.is_repeated:
        return [_item_to_json(field, item) for item in value]
    return _item_to_json(field, value)


def _item_to_json(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        union = _UNIONS.get(field.message_type.full_name)
        return union[0](value) if union is not None else to_json(value)
    if field.enum_type is not None:
        name = _enum_names(field.enum_type).get(value)
        if name is None:
            raise InvalidRequest(
                f"Invalid value for '{field.name}': {value} is not a value of {field.enum_type.name}.",
                param=field.name,
                code="invalid_value",
            )
        return name
    return value


def _is_set(message: Message, field: FieldDescriptor) -> bool:
    if field.is_repeated:
        return len(getattr(message, field.name)) > 0
    if field.has_presence:
        return message.HasField(field.name)
    # An implicit number or bool is always there (usage counts of zero); an implicit empty string or enum is absent.
    if field.enum_type is not None or field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return bool(getattr(message, field.name))
    return True


def _merge_extra(body: JsonObject, message: Message, extra: Mapping[str, str]) -> None:
    typed = _typed_names(message.DESCRIPTOR)
    for name, text in extra.items():
        if name in typed:
            raise InvalidRequest(
                f"extra_json[{name!r}]: this field has a typed field of the same name; set that.",
                param=name,
                code="invalid_value",
            )
        body[name] = _load(name, text)


def _load(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not valid JSON: {error}", param=name, code="invalid_json") from error


def _is_json_text(field: FieldDescriptor) -> bool:
    return field.name.endswith(_JSON_SUFFIX) and field.name != _EXTRA


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


@cache
def _fields(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    return tuple(descriptor.fields)


@cache
def _by_json_name(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    skipped = (_EXTRA, _FLATTENED)
    return {
        field.name.removesuffix(_JSON_SUFFIX) if _is_json_text(field) else field.name: field
        for field in descriptor.fields
        if field.name not in skipped
    }


@cache
def _typed_names(descriptor: Descriptor) -> frozenset[str]:
    names = set(_by_json_name(descriptor))
    flattened = descriptor.fields_by_name.get(_FLATTENED)
    if flattened is not None:
        names |= set(_by_json_name(flattened.message_type))
    return frozenset(names)


@cache
def _enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """Number -> JSON string: ROLE_USER is "user". The zero value means unset."""
    prefix = len(enum.values_by_number[0].name) - len("UNSPECIFIED")
    return {value.number: value.name[prefix:].lower() for value in enum.values if value.number}


@cache
def _enum_numbers(enum: EnumDescriptor) -> dict[str, int]:
    return {name: number for number, name in _enum_names(enum).items()}


def _content_to_json(content: common_pb2.Content) -> Any:
    if content.WhichOneof("content") == "parts":
        return [to_json(part) for part in content.parts.parts]
    return content.text if content.WhichOneof("content") else None


def _content_from_json(content: common_pb2.Content, value: Any) -> None:
    if isinstance(value, str):
        content.text = value
        return
    content.parts.SetInParent()
    for part in value:
        _fill(content.parts.parts.add(), part)


def _tool_choice_to_json(choice: common_pb2.ToolChoice) -> Any:
    kind = choice.WhichOneof("choice")
    if kind == "function_name":
        return {"type": "function", "function": {"name": choice.function_name}}
    if kind == "allowed_tools":
        return {"type": "allowed_tools", "allowed_tools": to_json(choice.allowed_tools)}
    return choice.mode if kind else None


def _tool_choice_from_json(choice: common_pb2.ToolChoice, value: Any) -> None:
    if isinstance(value, str):
        choice.mode = value
    elif value["type"] == "function":
        choice.function_name = value["function"]["name"]
    else:
        choice.allowed_tools.SetInParent()
        _fill(choice.allowed_tools, value["allowed_tools"])


def _prompt_to_json(prompt: completions_pb2.Prompt) -> Any:
    kind = prompt.WhichOneof("prompt")
    if kind == "texts":
        return list(prompt.texts.texts)
    if kind == "tokens":
        return list(prompt.tokens.tokens)
    if kind == "token_lists":
        return [list(tokens.tokens) for tokens in prompt.token_lists.lists]
    return prompt.text if kind else None


def _prompt_from_json(prompt: completions_pb2.Prompt, value: Any) -> None:
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


def _input_to_json(value: responses_pb2.ResponseInput) -> Any:
    kind = value.WhichOneof("input")
    if kind == "items":
        return [to_json(item) for item in value.items.items]
    return value.text if kind else None


def _input_from_json(target: responses_pb2.ResponseInput, value: Any) -> None:
    if isinstance(value, str):
        target.text = value
        return
    target.items.SetInParent()
    for item in value:
        _fill(target.items.items.add(), item)


_UNIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    "burrstone.openai.v1.Content": (_content_to_json, _content_from_json),
    "burrstone.openai.v1.ToolChoice": (_tool_choice_to_json, _tool_choice_from_json),
    "burrstone.openai.v1.Prompt": (_prompt_to_json, _prompt_from_json),
    "burrstone.openai.v1.ResponseInput": (_input_to_json, _input_from_json),
}
