"""The body of POST /v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from burrstone.serving.api.base import ListOf, PartModel, RequestModel


class InputTextPart(PartModel):
    type: Literal["input_text", "text"]
    text: str


class OutputTextPart(PartModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class OutputRefusalPart(PartModel):
    type: Literal["refusal"]
    refusal: str


class InputMediaPart(PartModel):
    """Accepted by the schema so that the refusal can say why: media are off."""

    type: Literal["input_image", "input_file", "input_audio"]
    image_url: Any = None
    detail: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    input_audio: Any = None


ItemPart = Annotated[InputTextPart | OutputTextPart | OutputRefusalPart | InputMediaPart, Field(discriminator="type")]


def _form(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


PartsOrText = Annotated[
    Annotated[str, Tag("text")] | Annotated[ListOf[ItemPart], Tag("parts")],
    Discriminator(_form, custom_error_type="content_type", custom_error_message="must be a string or a list of parts"),
]


class MessageItem(PartModel):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: PartsOrText
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCallItem(PartModel):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    namespace: str | None = None


class FunctionCallOutputItem(PartModel):
    type: Literal["function_call_output"]
    call_id: str
    output: PartsOrText
    id: str | None = None
    status: str | None = None


class ReasoningItem(PartModel):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: str | None = None


class ItemReference(PartModel):
    type: Literal["item_reference"]
    id: str


def _item_kind(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type", "message" if "role" in value else "item_reference" if "id" in value else None)
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(
        _item_kind,
        custom_error_type="item_type",
        custom_error_message="must be a message, function_call, function_call_output, reasoning or item_reference",
    ),
]
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[ListOf[Item], Tag("items")],
    Discriminator(
        lambda value: "text" if isinstance(value, str) else "items" if isinstance(value, list) else None,
        custom_error_type="input_type",
        custom_error_message="must be a string or a list of items",
    ),
]


class FunctionTool(PartModel):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(PartModel):
    type: Literal["function"]
    name: str


class AllowedTools(PartModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: ListOf[NamedTool]


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedTools, Tag("allowed_tools")],
    Discriminator(
        lambda value: "mode" if isinstance(value, str) else value.get("type") if isinstance(value, dict) else None,
        custom_error_type="tool_choice_type",
        custom_error_message='must be "none", "auto", "required", a named function or allowed_tools',
    ),
]


class TextFormat(PartModel):
    type: Literal["text"]


class JsonObjectFormat(PartModel):
    type: Literal["json_object"]


class JsonSchemaFormat(PartModel):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(PartModel):
    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(PartModel):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(PartModel):
    include_obfuscation: bool | None = None


class CreateResponse(RequestModel):
    """`conversation` and `prompt` may be null; what they would name does not exist here."""

    model: str
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: None = None
    prompt: None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    max_tool_calls: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: ListOf[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: ListOf[str] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
