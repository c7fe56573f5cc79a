"""How many items a body may hold, looked at before it is validated: a wrong body costs time and memory per item."""

from typing import Any

from burrstone.batching.errors import InvalidRequest
from burrstone.serving.api.types import JsonObject

MAX_ITEMS = 10_000
# Fields that may hold token ids, of which there are as many as the body has room for.
_TOKEN_FIELDS = ("prompt", "input", "tokens")


def check_sizes(body: JsonObject) -> None:
    """Raises InvalidRequest for a list or object of more than MAX_ITEMS. Lists of token ids may be longer."""
    _check_length(body, "body")
    for name, field in body.items():
        stack = [field] if isinstance(field, dict | list) else []
        while stack:
            here = stack.pop()
            if name in _TOKEN_FIELDS and isinstance(here, list) and here and set(map(type, here)) == {int}:
                continue
            _check_length(here, name)
            children = here.values() if isinstance(here, dict) else here
            stack += [child for child in children if isinstance(child, dict | list)]


def _check_length(value: dict[str, Any] | list[Any], param: str) -> None:
    if len(value) > MAX_ITEMS:
        param = param[:64]
        raise InvalidRequest(
            f"Invalid value for '{param}': {len(value)} items in one list or object; at most {MAX_ITEMS}.",
            param=param,
            code="invalid_value",
        )
