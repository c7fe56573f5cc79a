"""The older text completions: POST /v1/completions."""

from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from burrstone.serving.api.base import ListOf, UnknownFields, parse_model, reject
from burrstone.serving.api.chat_fix import fix_usage
from burrstone.serving.api.chat_schema import JsonSchemaFormat, ResponseFormat
from burrstone.serving.api.grammar import check_schema
from burrstone.serving.api.sampling import SamplingFields, check_sampling, num_copies, sampling_to_vllm
from burrstone.serving.api.types import Event, JsonObject, Stream
from burrstone.serving.config import LimitsConfig

_DEFAULT_MAX_TOKENS = 16  # OpenAI's own default for this endpoint
TokenId = Annotated[int, Field(ge=0, le=2**31)]


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return "tokens" if isinstance(first, int) else "token_lists" if isinstance(first, list) else "texts"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[ListOf[str], Tag("texts")]
    | Annotated[ListOf[TokenId], Tag("tokens")]
    | Annotated[ListOf[ListOf[TokenId]], Tag("token_lists")],
    Discriminator(
        _form,
        custom_error_type="prompt_type",
        custom_error_message="must be a string, a list of strings, a list of token ids or a list of such lists",
    ),
]


class CreateCompletion(SamplingFields):
    """`suffix` is refused: it needs a fill-in-the-middle model."""

    model: str
    prompt: Prompt
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None


def parse(body: JsonObject, limits: LimitsConfig, unknown_fields: UnknownFields) -> CreateCompletion:
    """The body, checked. Raises InvalidRequest naming the field, the rule and the fix."""
    request = parse_model(CreateCompletion, body, unknown_fields)
    check_sampling(request, limits)
    check_prompt(request.prompt, limits, "prompt")
    if request.suffix:
        raise reject("The 'suffix' parameter needs a fill-in-the-middle model.", "suffix", "unsupported_parameter")
    if request.logprobs is not None and request.logprobs > limits.max_logprobs:
        raise reject(f"Invalid value for 'logprobs': at most {limits.max_logprobs}.", "logprobs")
    if request.best_of not in (None, request.n or 1):
        raise reject("Invalid value for 'best_of': it must equal 'n'; ask for n and choose.", "best_of")
    if isinstance(request.response_format, JsonSchemaFormat):
        check_schema(request.response_format.json_schema.schema_, limits, "response_format")
    return request


def check_prompt(prompt: Any, limits: LimitsConfig, param: str) -> None:
    """Raises InvalidRequest for an empty prompt or too many of them."""
    several = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int))
    if several and not 1 <= len(prompt) <= limits.max_prompts:
        raise reject(f"Invalid value for '{param}': give 1 to {limits.max_prompts} prompts.", param)
    if any(len(part) == 0 for part in (prompt if several else [prompt])):
        raise reject(f"Invalid value for '{param}': a prompt cannot be empty.", param)


def to_vllm(request: CreateCompletion) -> dict[str, Any]:
    """Keyword arguments of vLLM's CompletionRequest."""
    kwargs = sampling_to_vllm(request)
    kwargs |= {"model": request.model, "prompt": request.prompt}
    kwargs["max_tokens"] = request.max_tokens or _DEFAULT_MAX_TOKENS
    for name in ("echo", "logprobs"):
        value = getattr(request, name)
        if value is not None:
            kwargs[name] = value
    if request.response_format is not None:
        kwargs["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
    return kwargs


def fix_response(raw: JsonObject, request: CreateCompletion, cached_tokens: int) -> JsonObject:
    """One text_completion object. `cached_tokens` of all prompts: vLLM reports those of the last one."""
    copies = num_copies(request)
    choices = [_choice(choice, request) for choice in raw["choices"]]
    fixed: JsonObject = {
        "id": raw["id"],
        "object": "text_completion",
        "created": raw["created"],
        "model": request.model,
        "choices": _repeat(choices, copies),
        "usage": _usage(raw["usage"], copies, cached_tokens),
    }
    if raw.get("system_fingerprint"):
        fixed["system_fingerprint"] = raw["system_fingerprint"]
    return fixed


async def fix_stream(
    chunks: AsyncGenerator[JsonObject, None], request: CreateCompletion, cached_tokens: Callable[[], int]
) -> Stream:
    """text_completion events; usage comes once, last, and only when it was asked for."""
    copies = num_copies(request)
    usage_wanted = bool(request.stream_options and request.stream_options.include_usage)
    try:
        async for chunk in chunks:
            usage = chunk.get("usage")
            fixed: JsonObject = {
                "id": chunk["id"],
                "object": "text_completion",
                "created": chunk["created"],
                "model": request.model,
                "choices": _repeat([_choice(choice, request) for choice in chunk["choices"]], copies),
            }
            if usage_wanted:
                fixed["usage"] = None if usage is None else _usage(usage, copies, cached_tokens())
            yield Event(fixed)
    finally:
        await chunks.aclose()


def _usage(raw: JsonObject, copies: int, cached_tokens: int) -> JsonObject:
    usage = fix_usage(raw, copies)
    usage["prompt_tokens_details"]["cached_tokens"] = min(cached_tokens, usage["prompt_tokens"])
    return usage


def _repeat(choices: list[JsonObject], copies: int) -> list[JsonObject]:
    if copies == 1:
        return choices
    return [choice | {"index": choice["index"] * copies + copy} for choice in choices for copy in range(copies)]


def _choice(raw: JsonObject, request: CreateCompletion) -> JsonObject:
    choice = {
        "index": raw["index"],
        "text": raw["text"],
        "logprobs": raw.get("logprobs"),
        "finish_reason": raw.get("finish_reason"),
    }
    if request.return_token_ids:
        choice["token_ids"] = raw.get("token_ids")
    return choice
