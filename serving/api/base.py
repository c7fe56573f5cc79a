"""What every dialect shares: strict request models, one clean message per mistake, and vLLM's errors in our tree."""

import difflib
import logging
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from burrstone.batching.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    ServeError,
    Unsupported,
)
from burrstone.serving.api.sizes import check_sizes
from burrstone.serving.api.types import JsonObject

log = logging.getLogger("burrstone.api")
UnknownFields = Literal["reject", "ignore"]
# Fields of vLLM that a client may not set here, and why.
REFUSED_FIELDS = {
    "chat_template": "the server's template is used",
    "mm_processor_kwargs": "the server decides how media are processed",
    "media_io_kwargs": "the server decides how media are read",
    "kv_transfer_params": "the server manages the KV cache",
    "vllm_xargs": "scheduling metadata comes from the API key, not from the body",
    "priority": "scheduling metadata comes from the API key, not from the body",
    "session_id": "scheduling metadata comes from the API key, not from the body",
    "cache_salt": "the server separates tenants itself",
    "request_id": "send the x-request-id header",
    "documents": "put documents into messages",
    "use_beam_search": "beam search is not offered",
    "length_penalty": "it belongs to beam search, which is not offered",
    "prompt_embeds": "embeddings are not accepted as prompts",
    "audio": "this server answers with text only",
    "web_search_options": "this server does not search the web; give the model a tool that does",
    "moderation": "this server does not moderate",
    "prompt_cache_options": "prompt prefixes are always cached",
    "context_management": "the server does not shorten conversations; send the turns that should count",
}
_MAX_SHOWN = 80
_MAX_NAMED = 10
_STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    protected_namespaces=(),
    validate_by_name=False,
    validate_by_alias=True,
    allow_inf_nan=False,
)


class RequestModel(BaseModel):
    """A request as its API defines it: unknown fields refused, no silent coercion."""

    model_config = _STRICT


class PartModel(BaseModel):
    """A nested object of a request."""

    model_config = _STRICT


RequestT = TypeVar("RequestT", bound=RequestModel)
ItemT = TypeVar("ItemT")
# A list whose first bad item ends the check: an error for each of a million items would take seconds and gigabytes.
ListOf = Annotated[list[ItemT], Field(fail_fast=True)]


def parse_model(cls: type[RequestT], body: JsonObject, unknown_fields: UnknownFields) -> RequestT:
    """The body as `cls`. Raises InvalidRequest that names the field, the rule and, for a typo, the nearest field."""
    for name in body.keys() & REFUSED_FIELDS.keys():
        if name not in cls.model_fields and body[name] is not None:
            raise InvalidRequest(
                f"{name} cannot be set by a request: {REFUSED_FIELDS[name]}.", param=name, code="unsupported_parameter"
            )
    if unknown_fields == "ignore":
        body = _known_fields(cls, body)
    check_sizes(body)
    try:
        return cls.model_validate(body)
    except ValidationError as error:
        raise _explain(cls, body, error) from None
    except RecursionError:
        raise InvalidRequest("The body nests too deeply.", code="invalid_value") from None


def reject(message: str, param: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(message, param=param, code=code)


def _known_fields(cls: type[RequestModel], body: JsonObject) -> JsonObject:
    names = _names(cls)
    ignored = [name for name in body if name not in names]
    if ignored:
        shown = ", ".join(_shorten(name) for name in ignored[:_MAX_NAMED])
        log.info("%s: %d unknown fields ignored: %s", cls.__name__, len(ignored), shown)
    return {name: value for name, value in body.items() if name in names}


def _names(cls: type[BaseModel]) -> set[str]:
    return set(cls.model_fields) | {field.alias for field in cls.model_fields.values() if field.alias}


def _explain(cls: type[BaseModel], body: JsonObject, error: ValidationError) -> InvalidRequest:
    problems = error.errors(include_url=False, include_context=True)
    # In a union every branch reports; the one that got furthest into the value is what the caller meant.
    problem = max(problems, key=lambda p: (len(p["loc"]), p["type"] != "extra_forbidden"))
    param = _path(body, problem["loc"], problem["type"])
    kind = problem["type"]
    if kind == "extra_forbidden":
        return InvalidRequest(_unknown(cls, param), param=param, code="unknown_parameter")
    if kind == "union_tag_not_found":
        discriminator = problem["ctx"]["discriminator"].strip("'")
        param, kind = f"{param}.{discriminator}", "missing"
    if kind == "missing":
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    given = problem["input"]
    shown = "" if isinstance(given, dict | list) else f", got {_shorten(given)}"
    message = f"Invalid value for '{param}': {_rule(problem)}{shown}."
    wrong_type = kind.endswith(("_type", "_parsing")) or kind == "is_instance_of"
    return InvalidRequest(message, param=param, code="invalid_type" if wrong_type else "invalid_value")


def _rule(problem: Any) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ").rstrip(".")
    tags = (problem.get("ctx") or {}).get("expected_tags")
    if tags:
        return f"expected one of {tags}"
    return message[:1].lower() + message[1:]


def _unknown(cls: type[BaseModel], param: str) -> str:
    near = [] if "." in param else difflib.get_close_matches(param, _names(cls), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Unrecognized request argument supplied: {_shorten(param)}.{hint}"


def _path(body: Any, loc: tuple[int | str, ...], kind: str) -> str:
    """pydantic's location without the union branches it mixes in: `messages[1].content[0].text`."""
    path = ""
    here = body
    for number, part in enumerate(loc):
        last = number == len(loc) - 1
        if isinstance(part, int) and isinstance(here, list) and part < len(here):
            path += f"[{part}]"
            here = here[part]
        elif isinstance(part, str) and isinstance(here, dict) and (part in here or (last and kind == "missing")):
            path += f".{part}" if path else part
            here = here.get(part)
    return path or "body"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_STATUS_TO_ERROR: dict[int, type[ServeError]] = {
    400: InvalidRequest,
    404: NotFound,
    413: BodyTooLarge,
    422: InvalidRequest,
    429: Overloaded,
    501: Unsupported,
    503: NotReady,
}
_CONTEXT = re.compile(r"context length|max_model_len|maximum model length|longer than the maximum", re.IGNORECASE)
_LIMIT = re.compile(r"(?:maximum (?:context|model) length|max_model_len)\D{0,20}(\d+)", re.IGNORECASE)
# vLLM appends its own fields to the text: "... (parameter=max_tokens, value=5)".
_TRAILER = re.compile(r"\s*\((?:parameter|value)=.*\)$", re.DOTALL)
_GRAMMAR = re.compile(
    r"into a grammar|grammar error|grammar specification|not supported by xgrammar|structural tag", re.IGNORECASE
)
# Where a library was built: "[02:02:20] /project/cpp/regex_converter.cc:83: ".
_ORIGIN = re.compile(r"(?:\[[\d:]+\] )?\S+\.(?:cc|cpp|h|rs|py):\d+: ?")
_PYDANTIC = re.compile(r"^\d+ validation errors? for ")
_PYDANTIC_RULE = re.compile(r"^ {2}(?:Value error, )?(.+?) \[type=", re.MULTILINE)
_INTERNAL = re.compile(r" at 0x[0-9a-f]+|site-packages|Traceback|<class '|<[\w.]+ object|/[\w.-]+/[\w.-]+\.\w+")
# vLLM's names for the parts of a prompt, which no request has.
_PROMPT_PARAMS = ("input_tokens", "input_text", "max_model_len", "prompt_token_ids")


def from_vllm_error(raw: JsonObject, *, prompt_param: str = "messages", grammar_param: str | None = None) -> ServeError:
    """vLLM's ErrorResponse (numeric code) as our error, without a word about vLLM's insides.

    `prompt_param` and `grammar_param` name the request's fields that hold the prompt and the grammar.
    """
    detail = raw.get("error", raw)
    status = detail.get("code")
    message = _public(str(detail.get("message", "")))
    param = detail.get("param")
    if param in _PROMPT_PARAMS:
        param = prompt_param
    cls = _STATUS_TO_ERROR.get(status if isinstance(status, int) else 500)
    if cls is None:
        return InternalError("The engine failed to answer this request.")
    if cls is InvalidRequest and _CONTEXT.search(message):
        return ContextLengthExceeded(_context_message(message), param=param or prompt_param)
    if cls is InvalidRequest and _GRAMMAR.search(message):
        return InvalidRequest(message, param=param or grammar_param, code="invalid_value")
    if cls is NotFound:
        return NotFound(message.split(" Valid aliases:")[0], param=param or "model", code="model_not_found")
    return cls(message, param=param, code="invalid_value" if cls is InvalidRequest else None)


def _public(message: str) -> str:
    """The part of vLLM's text that helps a caller: no validator dumps, source lines, addresses or paths."""
    message = _TRAILER.sub("", message)
    if _PYDANTIC.match(message):
        rule = _PYDANTIC_RULE.search(message)
        message = _TRAILER.sub("", rule[1]) if rule else ""
    message = _ORIGIN.sub("", message).strip()
    return "The engine refused this request." if not message or _INTERNAL.search(message) else message


def _context_message(message: str) -> str:
    """Clients recognise an overflow by OpenAI's phrase at the beginning, or by the code where they see only the text."""
    limit = _LIMIT.search(message)
    if limit and not message.startswith("This model's maximum context length is"):
        message = f"This model's maximum context length is {limit[1]} tokens. {message}"
    return f"{message} (context_length_exceeded)"
