"""pydantic-ai, chat and Responses: a forced tool call, its result, typed output and a streamed answer."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelMessage, ModelRequest, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from conversations import FORECAST, MAX_TOKENS, QUESTION, SCHEMA, Weather
from harness import MODEL, Server

pytestmark = [pytest.mark.clients, pytest.mark.engine]
BRIEF = ModelSettings(temperature=0, max_tokens=MAX_TOKENS)


@pytest.fixture(params=["chat", "responses"])
async def model(engine: Server, request: pytest.FixtureRequest) -> AsyncIterator[Model]:
    async with AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        provider = OpenAIProvider(openai_client=client)
        if request.param == "chat":
            yield OpenAIChatModel(MODEL, provider=provider)
        else:
            yield OpenAIResponsesModel(MODEL, provider=provider)


@pytest.mark.parametrize("choice", ["required", ["get_weather"]])
async def test_conversation(model: Model, choice: str | list[str]) -> None:
    tool = ToolDefinition(name="get_weather", description="Weather of a city", parameters_json_schema=SCHEMA)
    offered = ModelRequestParameters(function_tools=[tool])
    messages: list[ModelMessage] = [ModelRequest.user_text_prompt(QUESTION)]
    forced = BRIEF | ModelSettings(tool_choice=choice)  # type: ignore[typeddict-item]
    called = await model_request(model, messages, model_settings=forced, model_request_parameters=offered)
    [call] = [part for part in called.parts if isinstance(part, ToolCallPart)]
    assert Weather.model_validate(call.args_as_dict())
    messages += [called, ModelRequest(parts=[ToolReturnPart("get_weather", FORECAST, tool_call_id=call.tool_call_id)])]
    free = BRIEF | ModelSettings(tool_choice="none")
    answer = await model_request(model, messages, model_settings=free, model_request_parameters=offered)
    assert any(isinstance(part, TextPart) and part.content for part in answer.parts)


async def test_typed_output_and_a_second_turn(model: Model) -> None:
    agent = Agent(model, output_type=Weather, model_settings=BRIEF)
    first = await agent.run(QUESTION)
    second = await agent.run("And tomorrow?", message_history=first.all_messages())
    assert isinstance(first.output, Weather)
    assert isinstance(second.output, Weather)


async def test_streamed_answer(model: Model) -> None:
    agent = Agent(model, instructions="Be brief.", model_settings=BRIEF)
    async with agent.run_stream("Say hello.") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        whole = await stream.get_output()
    assert whole
    assert "".join(pieces) == whole
    assert stream.usage.output_tokens > 0
