"""Our OpenAPI document, made from the request models themselves."""

from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from burrstone.serving.api.base import RequestModel
from burrstone.serving.api.chat_schema import CreateChatCompletion
from burrstone.serving.api.completions import CreateCompletion
from burrstone.serving.api.embeddings import CreateEmbedding
from burrstone.serving.api.messages_schema import CountTokens, CreateMessage
from burrstone.serving.api.responses_schema import CreateResponse
from burrstone.serving.api.tokens import Detokenize, Tokenize
from burrstone.serving.api.types import JsonObject
from burrstone.serving.config import EMBEDDED_MODEL

_REF = "#/components/schemas/{model}"
_HELLO = [{"role": "user", "content": "Say hello."}]
_OPERATIONS: list[tuple[str, str, str, type[RequestModel] | None, JsonObject | None]] = [
    ("post", "/v1/chat/completions", "Create a chat completion", CreateChatCompletion, {"messages": _HELLO}),
    ("post", "/v1/completions", "Create a text completion", CreateCompletion, {"prompt": "Once upon", "max_tokens": 8}),
    ("post", "/v1/responses", "Create a response", CreateResponse, {"input": "Say hello."}),
    ("get", "/v1/responses/{id}", "Retrieve a stored response", None, None),
    ("delete", "/v1/responses/{id}", "Delete a stored response", None, None),
    ("post", "/v1/responses/{id}/cancel", "Cancel a background response", None, None),
    ("get", "/v1/responses/{id}/input_items", "List a response's input", None, None),
    (
        "post",
        "/v1/messages",
        "Create a message (Anthropic's API)",
        CreateMessage,
        {"messages": _HELLO, "max_tokens": 16},
    ),
    ("post", "/v1/messages/count_tokens", "Count a message's tokens", CountTokens, {"messages": _HELLO}),
    ("post", "/v1/embeddings", "Embed text, on a model that pools", CreateEmbedding, {"input": "hello"}),
    ("get", "/v1/models", "List models and adapters", None, None),
    ("get", "/v1/models/{model}", "Retrieve one model", None, None),
    ("post", "/tokenize", "Token ids of a prompt or conversation", Tokenize, {"prompt": "hello"}),
    ("post", "/detokenize", "Text of token ids", Detokenize, {"tokens": [1, 2]}),
    ("get", "/health", "The process is alive", None, None),
    ("get", "/ready", "The replica takes requests", None, None),
    ("get", "/version", "The server's version", None, None),
    ("get", "/metrics", "Prometheus metrics", None, None),
]
_OPEN = ("/health", "/ready", "/version", "/metrics")


def document() -> JsonObject:
    """The OpenAPI 3.1 document of every public route."""
    models = {model for _, _, _, model, _ in _OPERATIONS if model is not None}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema([(model, "validation") for model in ordered], ref_template=_REF)
    paths: JsonObject = {}
    for method, path, summary, model, example in _OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, summary, model, example)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "burrstone",
            "version": version("burrstone"),
            "description": "OpenAI-compatible API. Errors are OpenAI's envelope; /v1/messages uses Anthropic's.",
            "license": {"name": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"] | {"Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


_ERROR: JsonObject = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _operation(path: str, summary: str, model: type[RequestModel] | None, example: JsonObject | None) -> JsonObject:
    name = path.strip("/").replace("/", "_").replace("{", "").replace("}", "")
    operation: JsonObject = {
        "summary": summary,
        "operationId": f"{summary.split()[0].lower()}_{name}",
        "responses": {
            "200": {"description": "Success."},
            "default": {
                "description": "An error.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    parameters = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if model is not None:
        body: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
        body["example"] = ({} if "tokens" in (example or {}) else {"model": EMBEDDED_MODEL}) | (example or {})
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    if path not in _OPEN:
        operation["security"] = [{"bearer": []}, {}]
    return operation
