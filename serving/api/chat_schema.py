"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from burrstone.serving.api.base import ListOf, PartModel
from burrstone.serving.api.sampling import SamplingFields


class TextPart(PartModel):
    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None


class RefusalPart(PartModel):
    type: Literal["refusal"]
    refusal: str


class MediaPart(PartModel):
    """Accepted by the schema so that the refusal can say why: media are off."""

    type: Literal["image_url", "input_audio", "file", "video_url", "audio_url"]
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    video_url: Any = None
    audio_url: Any = None


def _form(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


UserPart = Annotated[TextPart | RefusalPart | MediaPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[ListOf[UserPart], Tag("parts")],
    Discriminator(
        _form,
        custom_error_type="content_type",
        custom_error_message="must be a string or a list of content parts",
    ),
]


class FunctionCall(PartModel):
    name: str
    arguments: str


class ToolCall(PartModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class SystemMessage(PartModel):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(PartModel):
    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(PartModel):
    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: ListOf[ToolCall] | None = None
    function_call: FunctionCall | None = None
    audio: None = None
    annotations: list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ToolMessage(PartModel):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


class FunctionMessage(PartModel):
    role: Literal["function"]
    content: str | None
    name: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")
]


class FunctionDefinition(PartModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(PartModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(PartModel):
    name: str


class NamedToolChoice(PartModel):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(PartModel):
    mode: Literal["auto", "required"]
    tools: ListOf[NamedToolChoice]


class AllowedToolsChoice(PartModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedToolChoice, Tag("function")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
    Discriminator(
        lambda value: "mode" if isinstance(value, str) else value.get("type") if isinstance(value, dict) else None,
        custom_error_type="tool_choice_type",
        custom_error_message='must be "none", "auto", "required", a named function or allowed_tools',
    ),
]


class JsonSchema(PartModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(PartModel):
    type: Literal["text"]


class JsonObjectFormat(PartModel):
    type: Literal["json_object"]


class JsonSchemaFormat(PartModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class CreateChatCompletion(SamplingFields):
    """`n`, `logprobs`, `tools` and grammars are bounded by the server's limits."""

    model: str
    messages: Annotated[ListOf[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    tools: ListOf[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: ListOf[FunctionDefinition] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: ListOf[Literal["text"]] | None = None
    prediction: dict[str, Any] | None = None

    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    include_reasoning: bool | None = None

    @property
    def max_tokens_asked(self) -> int | None:
        """max_completion_tokens wins over the older max_tokens."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
