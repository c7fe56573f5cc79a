"""Request fields that chat and text completions share, and their limits."""

from typing import Annotated, Any

from pydantic import Field

from burrstone.serving.api.base import ListOf, PartModel, RequestModel, reject
from burrstone.serving.api.grammar import (
    check_choices,
    check_regex,
    check_schema,
    check_structural_tag,
    check_text,
    parse_json,
)
from burrstone.serving.config import LimitsConfig

_INT64_MAX = 2**63 - 1


class StreamOptions(PartModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class StructuredOutputs(PartModel):
    """vLLM's structured outputs; exactly one of the fields is set."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: ListOf[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None


class SamplingFields(RequestModel):
    """Everything about choosing tokens; OpenAI's fields first, then vLLM's extensions."""

    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_INT64_MAX)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=_INT64_MAX)] | None = None
    stop: str | ListOf[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: str | None = None

    top_k: Annotated[int, Field(ge=-1, le=_INT64_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_INT64_MAX)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: ListOf[Annotated[int, Field(ge=0, le=2**31)]] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: ListOf[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None


# Fields that mean the same to vLLM, by the same name.
PASSED_ON = [
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "n",
    "seed",
    "stop",
    "stream",
    "temperature",
    "top_p",
    "user",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "bad_words",
    "return_token_ids",
]


def check_sampling(request: SamplingFields, limits: LimitsConfig) -> None:
    """Raises InvalidRequest for what a type cannot say: limits, and fields that only make sense together."""
    if request.n is not None and request.n > limits.max_n:
        raise reject(f"Invalid value for 'n': at most {limits.max_n} choices, got {request.n}.", "n")
    if request.stream_options is not None and not request.stream:
        raise reject("The 'stream_options' parameter is only allowed when 'stream' is true.", "stream_options")
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > limits.max_stop_sequences:
        raise reject(f"Invalid value for 'stop': at most {limits.max_stop_sequences} sequences.", "stop")
    if any(not stop for stop in stops):
        raise reject("Invalid value for 'stop': a stop sequence cannot be empty.", "stop")
    for token in request.logit_bias or {}:
        if not token.isdecimal():
            raise reject(f"Invalid value for 'logit_bias': {token[:32]!r} is not a token id.", "logit_bias")
    if request.bad_words and (len(request.bad_words) > limits.max_choices or not all(request.bad_words)):
        raise reject(f"Invalid value for 'bad_words': 1 to {limits.max_choices} non-empty words.", "bad_words")
    if request.min_tokens and request.max_tokens and request.min_tokens > request.max_tokens:
        raise reject("Invalid value for 'min_tokens': it is larger than 'max_tokens'.", "min_tokens")
    if request.structured_outputs is not None:
        _check_structured(request.structured_outputs, limits)


def sampling_to_vllm(request: SamplingFields) -> dict[str, Any]:
    """Keyword arguments for vLLM's request classes; absent fields stay absent, so that vLLM's defaults hold."""
    values = {name: getattr(request, name) for name in PASSED_ON}
    kwargs: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if request.temperature == 0 and request.n is not None:
        kwargs["n"] = 1  # greedy choices are equal: one is generated, the answer repeats it
    if request.stream_options is not None:
        kwargs["stream_options"] = {
            "include_usage": bool(request.stream_options.include_usage),
            "continuous_usage_stats": bool(request.stream_options.continuous_usage_stats),
        }
    if request.structured_outputs is not None:
        kwargs["structured_outputs"] = request.structured_outputs.model_dump(by_alias=True, exclude_none=True)
    return kwargs


def num_copies(request: SamplingFields) -> int:
    """How often the one greedy choice is repeated in the answer."""
    return request.n if request.temperature == 0 and request.n is not None else 1


def _check_structured(wanted: StructuredOutputs, limits: LimitsConfig) -> None:
    given = [wanted.json_, wanted.regex, wanted.choice, wanted.grammar, wanted.json_object, wanted.structural_tag]
    if sum(value is not None for value in given) != 1:
        raise reject(
            "Invalid value for 'structured_outputs': set exactly one of json, regex, choice, grammar, json_object, "
            "structural_tag.",
            "structured_outputs",
        )
    if wanted.json_object is False:
        raise reject(
            "Invalid value for 'structured_outputs.json_object': only true means something.", "structured_outputs"
        )
    checks = {
        "json": check_text,
        "regex": check_regex,
        "grammar": check_text,
        "structural_tag": check_structural_tag,
        "whitespace_pattern": check_regex,
    }
    for name, check in checks.items():
        text = getattr(wanted, "json_" if name == "json" else name)
        if isinstance(text, str):
            if not text:
                raise reject(f"Invalid value for 'structured_outputs.{name}': it is empty.", "structured_outputs")
            check(text, limits, f"structured_outputs.{name}")
    if wanted.json_ is not None:
        param = "structured_outputs.json"
        schema = parse_json(wanted.json_, param) if isinstance(wanted.json_, str) else wanted.json_
        check_schema(schema, limits, param)
    if wanted.choice is not None:
        check_choices(wanted.choice, limits, "structured_outputs.choice")
