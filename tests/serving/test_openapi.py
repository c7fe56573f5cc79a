"""Our OpenAPI document: every route, examples that we take ourselves, and OpenAI's fields."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from burrstone.serving.api.base import REFUSED_FIELDS, RequestModel, parse_model
from burrstone.serving.api.openapi import document
from burrstone.serving.config import HttpConfig, ServeConfig
from burrstone.serving.edges.documents import documents
from burrstone.serving.edges.http_routes import PATHS

DOCUMENT = document()
PLAIN = {("GET", "/health"), ("GET", "/ready"), ("GET", "/version"), ("GET", "/metrics")}
# OpenAI's own document is not part of the repository.
OPENAI = Path(__file__).parents[2].parent / "shared" / "schemas" / "openai" / "openapi.json"
OPERATIONS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
WITH_BODY = {path: operation for _, path, operation in OPERATIONS if "requestBody" in operation}


def test_every_route_is_documented_and_no_other() -> None:
    """Names in braces are ours to choose."""
    served = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in PATHS | PLAIN}
    assert {(method.upper(), re.sub(r"\{\w+\}", "{}", path)) for method, path, _ in OPERATIONS} == served


def test_names_and_references_resolve() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    for method, path, operation in OPERATIONS:
        named = {parameter["name"] for parameter in operation.get("parameters", [])}
        assert named == set(re.findall(r"\{(\w+)\}", path)), (method, path)
    schemas = DOCUMENT["components"]["schemas"]
    references = re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(DOCUMENT))
    assert references and set(references) <= schemas.keys()


def body_of(path: str) -> dict[str, Any]:
    content: dict[str, Any] = WITH_BODY[path]["requestBody"]["content"]["application/json"]
    return content


@pytest.mark.parametrize("path", sorted(WITH_BODY))
def test_the_example_fits_its_schema(path: str) -> None:
    content = body_of(path)
    schema = {"components": DOCUMENT["components"]} | content["schema"]
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(content["example"])
    assert not validator.is_valid(content["example"] | {"no_such_field": 1})


def request_models(cls: type[RequestModel] = RequestModel) -> Iterator[type[RequestModel]]:
    for below in cls.__subclasses__():
        yield below
        yield from request_models(below)


MODELS = {model.__name__: model for model in request_models()}


@pytest.mark.parametrize("path", sorted(WITH_BODY))
def test_the_server_takes_its_own_example(path: str) -> None:
    content = body_of(path)
    parse_model(MODELS[content["schema"]["$ref"].split("/")[-1]], content["example"], "reject")


@pytest.mark.skipif(not OPENAI.exists(), reason=f"OpenAI's document is not at {OPENAI}")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("CreateChatCompletionRequest", "CreateChatCompletion"),
        ("CreateCompletionRequest", "CreateCompletion"),
        ("CreateResponse", "CreateResponse"),
        ("CreateEmbeddingRequest", "CreateEmbedding"),
    ],
)
def test_openais_fields_are_honoured_or_refused_with_a_reason(theirs: str, ours: str) -> None:
    schemas = json.loads(OPENAI.read_text())["components"]["schemas"]
    fields = set(_properties(schemas[theirs], schemas))
    known = {field.alias or name for name, field in MODELS[ours].model_fields.items()}
    assert len(fields) > 4
    assert fields - known - REFUSED_FIELDS.keys() == set()


def _properties(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].split("/")[-1]]
    yield from schema.get("properties", {})
    for part in schema.get("allOf", []):
        yield from _properties(part, schemas)


def test_nothing_is_published_when_it_is_turned_off() -> None:
    assert documents(ServeConfig(http=HttpConfig(docs=False))) == {}
    assert documents(ServeConfig()).keys() == {"/openapi.json", "/docs"}
