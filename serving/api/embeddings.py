"""POST /v1/embeddings, for models that pool."""

from typing import Annotated, Any, Literal

from pydantic import Field

from burrstone.serving.api.base import RequestModel, UnknownFields, parse_model
from burrstone.serving.api.completions import Prompt, check_prompt
from burrstone.serving.api.types import JsonObject
from burrstone.serving.config import LimitsConfig


class CreateEmbedding(RequestModel):
    model: str
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31)] | None = None
    user: str | None = None


def parse(body: JsonObject, limits: LimitsConfig, unknown_fields: UnknownFields) -> CreateEmbedding:
    """The body, checked. Raises InvalidRequest naming the field, the rule and the fix."""
    request = parse_model(CreateEmbedding, body, unknown_fields)
    check_prompt(request.input, limits, "input")
    return request


def to_vllm(request: CreateEmbedding) -> dict[str, Any]:
    """Keyword arguments of vLLM's EmbeddingCompletionRequest."""
    return request.model_dump(exclude_none=True)


def fix_response(raw: JsonObject, request: CreateEmbedding) -> JsonObject:
    """One list of embedding objects."""
    usage = raw["usage"]
    return {
        "object": "list",
        "model": request.model,
        "data": [
            {"object": "embedding", "index": item["index"], "embedding": item["embedding"]} for item in raw["data"]
        ],
        "usage": {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["total_tokens"]},
    }
