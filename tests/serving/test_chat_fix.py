"""When an answer that called no tool is taken for an agent's last."""

from typing import Any

import pytest

from burrstone.serving.api.chat import calls_no_tool
from burrstone.serving.api.chat_schema import CreateChatCompletion

_FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {}}}
TOOLS = {"tools": [{"type": "function", "function": _FUNCTION}]}


@pytest.mark.parametrize(
    ("asked", "finish_reasons", "last"),
    [
        (TOOLS, ["stop"], True),
        (TOOLS | {"tool_choice": "auto"}, ["stop", "stop"], True),
        ({"functions": [_FUNCTION]}, ["stop"], True),
        (TOOLS, ["stop", "tool_calls"], False),
        (TOOLS, ["length"], False),
        (TOOLS, [], False),
        (TOOLS | {"tool_choice": "none"}, ["stop"], False),
        (TOOLS | {"tool_choice": "required"}, ["stop"], False),
        (TOOLS | {"tool_choice": {"type": "function", "function": {"name": "look"}}}, ["stop"], False),
        ({"functions": [_FUNCTION], "function_call": {"name": "look"}}, ["stop"], False),
        ({}, ["stop"], False),
    ],
)
def test_only_an_answer_that_could_have_called_a_tool_is_the_last(
    asked: dict[str, Any], finish_reasons: list[str], last: bool
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    request = CreateChatCompletion.model_validate(body | asked)
    assert calls_no_tool(request, finish_reasons) is last
