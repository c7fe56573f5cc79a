"""The Anthropic SDK: a forced tool call, its result, and a streamed answer."""

import pytest
from anthropic import Anthropic, BadRequestError
from anthropic.types import MessageParam, ToolParam, ToolUseBlock

from conversations import FORECAST, MAX_TOKENS, QUESTION, SCHEMA, Weather
from harness import MODEL, Server

pytestmark = [pytest.mark.clients, pytest.mark.engine]
TOOL: ToolParam = {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA}


def client_of(engine: Server) -> Anthropic:
    return Anthropic(base_url=engine.url, api_key="none", max_retries=0)


@pytest.mark.parametrize("named", [True, False])
def test_conversation(engine: Server, named: bool) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": QUESTION}]
    with client_of(engine) as client:
        first = client.messages.create(
            model=MODEL,
            max_tokens=MAX_TOKENS,
            messages=messages,
            tools=[TOOL],
            tool_choice={"type": "tool", "name": "get_weather"} if named else {"type": "any"},
        )
        [call] = [block for block in first.content if isinstance(block, ToolUseBlock)]
        assert first.stop_reason == "tool_use"
        assert Weather.model_validate(call.input)
        messages.append({"role": "assistant", "content": first.content})
        messages.append(
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": FORECAST}]}
        )
        with client.messages.stream(
            model=MODEL, max_tokens=MAX_TOKENS, messages=messages, tools=[TOOL], tool_choice={"type": "none"}
        ) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        count = client.messages.count_tokens(model=MODEL, messages=messages, tools=[TOOL], tool_choice={"type": "none"})
    assert final.content[0].type == "text"
    assert "".join(pieces) == final.content[0].text
    assert final.stop_reason in ("end_turn", "max_tokens")
    assert count.input_tokens > 0


def test_streamed_tool_call(engine: Server) -> None:
    with (
        client_of(engine) as client,
        client.messages.stream(
            model=MODEL,
            max_tokens=MAX_TOKENS,
            messages=[{"role": "user", "content": QUESTION}],
            tools=[TOOL],
            tool_choice={"type": "any"},
        ) as stream,
    ):
        final = stream.get_final_message()
    [call] = [block for block in final.content if isinstance(block, ToolUseBlock)]
    assert Weather.model_validate(call.input)
    assert final.usage.output_tokens > 0


def test_errors_are_the_sdks_own(engine: Server) -> None:
    with client_of(engine) as client, pytest.raises(BadRequestError, match="temperature"):
        client.messages.create(
            model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "x"}], extra_body={"temperature": 7}
        )
