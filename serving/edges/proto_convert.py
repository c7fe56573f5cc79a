"""proto <-> the HTTP API's JSON, driven by the message descriptors and the tables of proto_convert_tables.

A proto field has its JSON field's name. The exceptions: unions that JSON writes as "string or object" (UNIONS), enums
(ROLE_USER <-> "user"), fields ending in `_json` (JSON text of the field without that ending), `vllm` (its fields lie
beside the others in JSON), and `extra_json` (fields without a typed twin). JSON's null and [] are unset fields.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from burrstone.batching.errors import InvalidRequest
from burrstone.serving.api.types import JsonObject
from burrstone.serving.edges.proto_convert_tables import REQUEST_EXTRAS, UNIONS

MessageT = TypeVar("MessageT", bound=Message)
_JSON_SUFFIX = "_json"
_EXTRA = "extra_json"
_FLATTENED = "vllm"


def to_json(message: Message) -> JsonObject:
    """The JSON object of an answer; unset fields are left out, whatever extra_json holds is taken."""
    return _read(message, None)


def request_json(message: Message, max_json_depth: int) -> JsonObject:
    """The HTTP body of a request. Raises InvalidRequest: unknown enum value, bad JSON text, extra_json not allowed."""
    return _read(message, max_json_depth)


def from_json(cls: type[MessageT], body: Mapping[str, Any]) -> MessageT:
    """The message of a JSON object. Nulls and empty lists stay unset; what has no field goes into extra_json.

    Raises ValueError, TypeError or KeyError for JSON that the message cannot hold.
    """
    message = cls()
    _fill(message, body)
    return message


def check_known(request: Message) -> None:
    """Raises InvalidRequest when the request holds fields that this server's protos do not have."""
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    if known.ByteSize() != request.ByteSize():
        unknown: Any = UnknownFieldSet(request)
        numbers = sorted({field.field_number for field in unknown})
        where = f"field numbers {numbers}" if numbers else "a field of a nested message"
        raise InvalidRequest(
            f"{request.DESCRIPTOR.name} has {where} unknown to this server; its protos are older than the client's.",
            code="unknown_parameter",
        )


def typed_names(descriptor: Descriptor) -> frozenset[str]:
    """JSON names that a message has fields for, the flattened ones included."""
    plan = _plan(descriptor)
    return frozenset(plan.by_json_name) | frozenset(plan.flattened)


@dataclass(frozen=True, slots=True)
class _Field:
    """How one proto field is told, read and written. `presence`: is it set in this message?"""

    name: str
    json_name: str
    presence: Callable[[Message], bool]
    read: Callable[[Any, int | None], Any]
    write: Callable[[Message, Any], None]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What there is to know of a message type. `flattened`: fields of `vllm` that JSON has beside the others."""

    fields: tuple[_Field, ...]
    by_json_name: dict[str, _Field]
    flattened: frozenset[str]
    has_extra: bool
    allowed_extra: frozenset[str]


def _read(message: Message, max_depth: int | None) -> JsonObject:
    """`max_depth` set: a client wrote this, so extra_json and JSON texts are checked."""
    plan = _plan(message.DESCRIPTOR)
    body: JsonObject = {}
    for field in plan.fields:
        if field.presence(message):
            body[field.json_name] = field.read(getattr(message, field.name), max_depth)
    if plan.flattened and message.HasField(_FLATTENED):
        body |= _read(getattr(message, _FLATTENED), max_depth)
    if plan.has_extra:
        for name, text in getattr(message, _EXTRA).items():
            if max_depth is not None:
                _check_extra(plan, name)
            body[name] = _load(name, text, max_depth)
    return body


def _fill(message: Message, body: Mapping[str, Any]) -> None:
    plan = _plan(message.DESCRIPTOR)
    nested: JsonObject = {}
    for name, value in body.items():
        if value is None:
            continue
        field = plan.by_json_name.get(name)
        if field is not None:
            field.write(message, value)
        elif name in plan.flattened:
            nested[name] = value
        elif not plan.has_extra:
            raise ValueError(f"{message.DESCRIPTOR.full_name} has no field for {name!r}")
        elif value != []:
            getattr(message, _EXTRA)[name] = _dump(value)
    if nested:
        _fill(getattr(message, _FLATTENED), nested)


def _check_extra(plan: _Plan, name: str) -> None:
    shown = repr(name[:64])
    if name in plan.by_json_name or name in plan.flattened:
        rule = "it has a typed field of the same name; set that"
    elif name not in plan.allowed_extra:
        allowed = ", ".join(sorted(plan.allowed_extra))
        rule = f"only these are taken: {allowed}"
    else:
        return
    raise InvalidRequest(f"extra_json[{shown}] is refused: {rule}.", param=name[:64], code="unknown_parameter")


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    by_name = descriptor.fields_by_name
    fields = tuple(_field(field) for field in descriptor.fields if field.name not in (_EXTRA, _FLATTENED))
    flattened = _plan(by_name[_FLATTENED].message_type).by_json_name if _FLATTENED in by_name else {}
    return _Plan(
        fields=fields,
        by_json_name={field.json_name: field for field in fields},
        flattened=frozenset(flattened),
        has_extra=_EXTRA in by_name,
        allowed_extra=REQUEST_EXTRAS.get(descriptor.full_name, frozenset()),
    )


def _field(field: FieldDescriptor) -> _Field:
    name = field.name
    json_name = name
    read, write = _item_codec(field)
    if name.endswith(_JSON_SUFFIX):
        json_name = name.removesuffix(_JSON_SUFFIX)
        return _Field(name, json_name, _presence(field), partial(_load, name), partial(_write_text, name))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        integer = field.message_type.fields_by_name["key"].cpp_type != FieldDescriptor.CPPTYPE_STRING
        return _Field(name, name, _presence(field), _read_map, partial(_write_map, name, int if integer else str))
    if field.is_repeated:
        return _Field(name, name, _presence(field), partial(_read_list, read), partial(_write_list, name, write))
    return _Field(name, json_name, _presence(field), read, partial(_write_one, name, write))


def _presence(field: FieldDescriptor) -> Callable[[Message], bool]:
    name = field.name
    if field.is_repeated:
        return lambda message: len(getattr(message, name)) > 0
    if field.has_presence:
        return lambda message: message.HasField(name)
    # An implicit number or bool is always there (usage counts of zero); an implicit empty string or enum is absent.
    if field.enum_type is not None or field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return lambda message: bool(getattr(message, name))
    return lambda message: True


WriteItem = Callable[[Any, Any], None]


def _item_codec(field: FieldDescriptor) -> tuple[Callable[[Any, int | None], Any], WriteItem | None]:
    """(read, write) of one value; write is None for plain scalars, which are set as they are."""
    if field.enum_type is not None:
        return partial(_read_enum, field.name, _enum_names(field.enum_type)), partial(_write_enum, field)
    if field.message_type is None:
        return (lambda value, _: value), None
    union = UNIONS.get(field.full_name) or UNIONS.get(field.message_type.full_name)
    if union is None:
        return _read, _fill
    found = union
    return (
        (lambda value, depth: found.read(value, partial(_read, max_depth=depth))),
        (lambda message, value: found.write(message, value, _fill)),
    )


def _read_map(value: Any, _: int | None) -> JsonObject:
    return {str(key): item for key, item in value.items()}


def _write_map(name: str, key_type: Callable[[Any], Any], message: Message, value: Mapping[str, Any]) -> None:
    getattr(message, name).update({key_type(key): item for key, item in value.items()})


def _read_list(read: Callable[[Any, int | None], Any], value: Any, max_depth: int | None) -> list[Any]:
    return [read(item, max_depth) for item in value]


def _write_list(name: str, write: WriteItem | None, message: Message, value: Any) -> None:
    target = getattr(message, name)
    items = [value] if isinstance(value, str) else value  # `stop` may be one string
    if write is None:
        target.extend(items)
        return
    for item in items:
        write(target.add(), item)


def _write_one(name: str, write: WriteItem | None, message: Message, value: Any) -> None:
    if write is None:
        setattr(message, name, value)
        return
    if message.DESCRIPTOR.fields_by_name[name].enum_type is not None:
        write(message, value)
        return
    child = getattr(message, name)
    child.SetInParent()
    write(child, value)


def _read_enum(name: str, names: dict[int, str], value: int, max_depth: int | None) -> str:
    found = names.get(value)
    if found is None:
        raise InvalidRequest(
            f"Invalid value for '{name}': {value} is not one of its enum values.", param=name, code="invalid_value"
        )
    return found


def _write_enum(field: FieldDescriptor, message: Message, value: str) -> None:
    number = _enum_numbers(field.enum_type).get(value)
    if number is not None:
        setattr(message, field.name, number)
    elif _plan(message.DESCRIPTOR).has_extra:
        getattr(message, _EXTRA)[field.name] = _dump(value)
    else:
        raise ValueError(f"{field.full_name} has no value {value!r}")


def _write_text(name: str, message: Message, value: Any) -> None:
    setattr(message, name, _dump(value))


def _dump(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _load(name: str, text: str, max_depth: int | None) -> Any:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{name[:64]} is not valid JSON: {error}", param=name[:64], code="invalid_json") from error
    if max_depth is not None and _deeper_than(value, max_depth):
        raise InvalidRequest(f"{name[:64]} nests deeper than {max_depth} levels.", param=name[:64], code="invalid_json")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(item, levels - 1) for item in items)


@cache
def _enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """Number -> JSON string: ROLE_USER is "user". The zero value means unset."""
    prefix = len(enum.values_by_number[0].name) - len("UNSPECIFIED")
    return {value.number: value.name[prefix:].lower() for value in enum.values if value.number}


@cache
def _enum_numbers(enum: EnumDescriptor) -> dict[str, int]:
    return {name: number for number, name in _enum_names(enum).items()}
