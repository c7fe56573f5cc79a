"""GET /v1/responses/{id}/input_items pages as the query asks."""

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from burrstone.batching.errors import InvalidRequest
from burrstone.batching.request import RequestMeta
from burrstone.serving.api.response_store import ResponseStore, StoredResponse
from burrstone.serving.api.responses import ResponsesApi
from burrstone.serving.api.types import Api, JsonObject
from burrstone.serving.config import LimitsConfig
from burrstone.serving.edges.http_routes import RouteTable

META = RequestMeta(request_id="r", tenant="t")


async def _no_chat(body: JsonObject, meta: RequestMeta) -> AsyncGenerator[Any, None]:
    raise AssertionError("nothing is generated")


class StoredOnly:
    """An Api with one stored response of five items, i0 to i4."""

    def __init__(self) -> None:
        store = ResponseStore()
        response = {"id": "resp_1", "status": "completed", "output": []}
        store.put(StoredResponse("t", response, [{"id": f"i{number}"} for number in range(5)]))
        self.response_input_items = ResponsesApi(_no_chat, LimitsConfig(), "reject", store=store).input_items


async def ask(query: str) -> JsonObject:
    match = RouteTable().match("/v1/responses/resp_1/input_items")["GET"]
    reply = await match.operation.run(cast(Api, StoredOnly()), {}, META, match.path_value, query.encode())
    assert isinstance(reply, dict)
    return reply


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ("", "43210", False),
        ("limit=2", "43", True),
        ("limit=2&order=asc", "01", True),
        ("order=asc&after=i1&limit=100", "234", False),
        ("after=i3&limit=1", "2", True),
        ("after=i0", "", False),
    ],
)
async def test_pages(query: str, ids: str, has_more: bool) -> None:
    reply = await ask(query)
    assert "".join(item["id"][1:] for item in reply["data"]) == ids
    assert reply["has_more"] is has_more


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=-1", "order=up", "after=i9"])
async def test_what_is_no_page(query: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await ask(query)
    assert refused.value.param == query.split("=")[0]
