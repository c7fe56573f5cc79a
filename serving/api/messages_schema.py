"""The body of POST /v1/messages and /v1/messages/count_tokens (Anthropic's API)."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from burrstone.serving.api.base import ListOf, PartModel, RequestModel

Cache = dict[str, Any] | None


class TextBlock(PartModel):
    type: Literal["text"]
    text: str
    cache_control: Cache = None
    citations: list[Any] | None = None


class ToolUseBlock(PartModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Cache = None
    caller: Any = None


def _form(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "blocks" if isinstance(value, list) else None


def _text_or(kind: Any) -> Any:
    return Annotated[
        Annotated[str, Tag("text")] | Annotated[ListOf[kind], Tag("blocks")],
        Discriminator(
            _form, custom_error_type="content_type", custom_error_message="must be a string or a list of blocks"
        ),
    ]


class MediaBlock(PartModel):
    """Accepted by the schema so that the refusal can say why: media are off."""

    type: Literal["image", "document", "search_result"]
    source: Any = None
    title: Any = None
    content: Any = None
    context: Any = None
    citations: Any = None
    cache_control: Cache = None


class ThinkingBlock(PartModel):
    type: Literal["thinking", "redacted_thinking"]
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


ResultBlock = Annotated[TextBlock | MediaBlock, Field(discriminator="type")]


class ToolResultBlock(PartModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: _text_or(ResultBlock) | None = None  # type: ignore[valid-type]
    is_error: bool | None = None
    cache_control: Cache = None


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock | MediaBlock | ThinkingBlock, Field(discriminator="type")]


class InputMessage(PartModel):
    role: Literal["user", "assistant"]
    content: _text_or(Block)  # type: ignore[valid-type]


class AnthropicTool(PartModel):
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Cache = None
    eager_input_streaming: bool | None = None


class AnthropicToolChoice(PartModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(PartModel):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(PartModel):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(PartModel):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessageMetadata(PartModel):
    user_id: str | None = None


class CountTokens(RequestModel):
    model: str
    messages: Annotated[ListOf[InputMessage], Field(min_length=1)]
    system: _text_or(TextBlock) | None = None  # type: ignore[valid-type]
    tools: ListOf[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: Cache = None


class CreateMessage(CountTokens):
    max_tokens: Annotated[int, Field(ge=1, le=2**63 - 1)]
    stop_sequences: ListOf[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    output_config: OutputConfig | None = None
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
