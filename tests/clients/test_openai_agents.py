"""The OpenAI Agents SDK, chat and Responses: its loop runs a tool and ends with an answer, whole and streamed."""

from collections.abc import AsyncIterator

import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    ToolCallItem,
    ToolCallOutputItem,
    function_tool,
)
from openai import AsyncOpenAI

from conversations import FORECAST, MAX_TOKENS, QUESTION, City, Weather
from harness import MODEL, Server

pytestmark = [pytest.mark.clients, pytest.mark.engine]
# Traces would be sent to OpenAI.
RUN = RunConfig(tracing_disabled=True)


@pytest.fixture(params=["chat", "responses"])
async def model(engine: Server, request: pytest.FixtureRequest) -> AsyncIterator[Model]:
    async with AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        if request.param == "chat":
            yield OpenAIChatCompletionsModel(MODEL, client)
        else:
            yield OpenAIResponsesModel(MODEL, client)


@pytest.mark.parametrize("choice", ["required", "get_weather"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_agent_calls_its_tool_and_answers(model: Model, choice: str, streamed: bool) -> None:
    asked: list[City] = []

    @function_tool
    def get_weather(city: City) -> str:
        """Get the weather of a city."""
        asked.append(city)
        return FORECAST

    settings = ModelSettings(tool_choice=choice, temperature=0, max_tokens=MAX_TOKENS)
    agent = Agent(name="weather", instructions="Be brief.", model=model, model_settings=settings, tools=[get_weather])
    if streamed:
        result = Runner.run_streamed(agent, QUESTION, run_config=RUN, max_turns=3)
        kinds = {event.type async for event in result.stream_events()}
        assert kinds >= {"raw_response_event", "run_item_stream_event"}
        items, answer = result.new_items, result.final_output
    else:
        run = await Runner.run(agent, QUESTION, run_config=RUN, max_turns=3)
        items, answer = run.new_items, run.final_output
    assert len(asked) == 1
    assert isinstance(items[0], ToolCallItem)
    assert isinstance(items[1], ToolCallOutputItem)
    assert items[1].output == FORECAST
    assert isinstance(answer, str)
    assert answer


async def test_typed_output(model: Model) -> None:
    agent = Agent(name="weather", model=model, output_type=Weather, model_settings=ModelSettings(temperature=0))
    run = await Runner.run(agent, QUESTION, run_config=RUN)
    assert isinstance(run.final_output, Weather)
