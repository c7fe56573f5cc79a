"""openai-agents and pydantic-ai, chat and Responses: text, stream, forced tool, structured output."""

from functools import partial

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    ToolCallOutputItem,
    function_tool,
)
from agents.models.interface import Model as AgentsModel
from openai import AsyncOpenAI
from pydantic_ai import Agent as TypedAgent
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model as TypedModel
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as TypedResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings as TypedSettings
from pydantic_ai.tools import ToolDefinition

from cells import Cell, Weather, base_url, expect, model_name, run

QUESTION = "What is the weather in Paris?"
MAX_TOKENS = 64
RUN = RunConfig(tracing_disabled=True)
BRIEF = TypedSettings(temperature=0, max_tokens=MAX_TOKENS)
FORCED = TypedSettings(temperature=0, max_tokens=MAX_TOKENS, tool_choice="required")
OFFERED = ModelRequestParameters(
    function_tools=[ToolDefinition(name="get_weather", parameters_json_schema=Weather.model_json_schema())]
)


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"21 degrees in {city}"


def agent_of(model: AgentsModel, *, tool_choice: str | None = None, typed: bool = False) -> Agent[None]:
    return Agent(
        name="weather",
        instructions="Be brief.",
        model=model,
        model_settings=ModelSettings(temperature=0, max_tokens=MAX_TOKENS, tool_choice=tool_choice),
        tools=[get_weather] if tool_choice else [],
        output_type=Weather if typed else None,
    )


async def agents_text(model: AgentsModel) -> None:
    result = await Runner.run(agent_of(model), "Say hello.", run_config=RUN)
    expect(isinstance(result.final_output, str) and result.final_output, "text")
    expect(result.context_wrapper.usage.output_tokens > 0, "usage")


async def agents_stream(model: AgentsModel) -> None:
    result = Runner.run_streamed(agent_of(model), "Say hello.", run_config=RUN)
    kinds = [event.type async for event in result.stream_events()]
    expect("raw_response_event" in kinds and "run_item_stream_event" in kinds, "raw events and items")
    expect(result.final_output, "text")


async def agents_tool(model: AgentsModel, *, streamed: bool) -> None:
    agent = agent_of(model, tool_choice="required")
    if streamed:
        result = Runner.run_streamed(agent, QUESTION, run_config=RUN, max_turns=3)
        async for _ in result.stream_events():
            pass
        items = result.new_items
    else:
        items = (await Runner.run(agent, QUESTION, run_config=RUN, max_turns=3)).new_items
    expect(any(isinstance(item, ToolCallOutputItem) for item in items), "a tool's output among the items")


async def agents_structured(model: AgentsModel) -> None:
    result = await Runner.run(agent_of(model, typed=True), QUESTION, run_config=RUN)
    expect(isinstance(result.final_output, Weather), "an instance of the type")


async def typed_text(model: TypedModel) -> None:
    result = await TypedAgent(model, model_settings=BRIEF).run("Say hello.")
    expect(result.output, "text")
    expect(result.usage.output_tokens > 0, "usage")


async def typed_stream(model: TypedModel) -> None:
    async with TypedAgent(model, model_settings=BRIEF).run_stream("Say hello.") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        expect("".join(pieces) == await stream.get_output(), "the pieces to make the whole")


async def typed_tool(model: TypedModel, *, streamed: bool) -> None:
    messages = [ModelRequest.user_text_prompt(QUESTION)]
    if streamed:
        async with model_request_stream(
            model, messages, model_settings=FORCED, model_request_parameters=OFFERED
        ) as stream:
            async for _ in stream:
                pass
            called = stream.get()
    else:
        called = await model_request(model, messages, model_settings=FORCED, model_request_parameters=OFFERED)
    [call] = [part for part in called.parts if isinstance(part, ToolCallPart)]
    Weather.model_validate(call.args_as_dict())
    answered = ModelRequest(parts=[ToolReturnPart("get_weather", "21 degrees", tool_call_id=call.tool_call_id)])
    answer = await model_request(model, [*messages, called, answered], model_settings=BRIEF)
    expect(answer.parts, "an answer to the tool's result")


async def typed_structured(model: TypedModel) -> None:
    result = await TypedAgent(model, output_type=Weather, model_settings=BRIEF).run(QUESTION)
    expect(isinstance(result.output, Weather), "an instance of the type")


def cells(client: AsyncOpenAI) -> dict[str, Cell]:
    provider = OpenAIProvider(openai_client=client)
    agents: dict[str, AgentsModel] = {
        "chat": OpenAIChatCompletionsModel(model_name(), client),
        "responses": OpenAIResponsesModel(model_name(), client),
    }
    typed: dict[str, TypedModel] = {
        "chat": OpenAIChatModel(model_name(), provider=provider),
        "responses": TypedResponsesModel(model_name(), provider=provider),
    }
    found: dict[str, Cell] = {}
    for api in ("chat", "responses"):
        found |= {
            f"openai-agents {api} text": partial(agents_text, agents[api]),
            f"openai-agents {api} stream": partial(agents_stream, agents[api]),
            f"openai-agents {api} tool": partial(agents_tool, agents[api], streamed=False),
            f"openai-agents {api} tool streamed": partial(agents_tool, agents[api], streamed=True),
            f"openai-agents {api} structured": partial(agents_structured, agents[api]),
            f"pydantic-ai {api} text": partial(typed_text, typed[api]),
            f"pydantic-ai {api} stream": partial(typed_stream, typed[api]),
            f"pydantic-ai {api} tool": partial(typed_tool, typed[api], streamed=False),
            f"pydantic-ai {api} tool streamed": partial(typed_tool, typed[api], streamed=True),
            f"pydantic-ai {api} structured": partial(typed_structured, typed[api]),
        }
    return found


if __name__ == "__main__":
    run(cells(AsyncOpenAI(base_url=base_url(), api_key="none", max_retries=0)))
