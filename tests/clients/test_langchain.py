"""LangChain's ChatOpenAI, chat and Responses: a forced tool call, its result, and a streamed answer."""

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from conversations import FORECAST, MAX_TOKENS, QUESTION, Weather
from harness import MODEL, Server

pytestmark = [pytest.mark.clients, pytest.mark.engine]


def model_of(engine: Server, *, responses: bool = False) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{engine.url}/v1",
        api_key=SecretStr("none"),
        model=MODEL,
        temperature=0,
        max_completion_tokens=MAX_TOKENS,
        max_retries=0,
        stream_usage=True,
        use_responses_api=responses,
    )


@pytest.mark.parametrize("choice", ["required", "Weather"])
@pytest.mark.parametrize("responses", [False, True])
async def test_conversation(engine: Server, responses: bool, choice: str) -> None:
    model = model_of(engine, responses=responses)
    messages: list[BaseMessage] = [HumanMessage(QUESTION)]
    called = await model.bind_tools([Weather], tool_choice=choice).ainvoke(messages)
    assert isinstance(called, AIMessage)
    [call] = called.tool_calls
    assert Weather.model_validate(call["args"])
    messages += [called, ToolMessage(FORECAST, tool_call_id=call["id"])]
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(messages):
        assert isinstance(chunk, AIMessageChunk)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(engine: Server, method: str) -> None:
    model = model_of(engine).with_structured_output(Weather, method=method)  # type: ignore[arg-type]
    assert isinstance(await model.ainvoke(QUESTION), Weather)


async def test_overflow_is_recognised(engine: Server) -> None:
    with pytest.raises(ContextOverflowError):
        await model_of(engine).ainvoke("word " * 4000)
