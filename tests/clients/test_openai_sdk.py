"""The OpenAI SDK, chat and Responses: a forced tool call, its result, and a streamed answer."""

import pytest
from openai import APIStatusError, OpenAI
from openai.types.chat import ChatCompletionMessageFunctionToolCall, ChatCompletionMessageParam
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall

from conversations import FORECAST, MAX_TOKENS, QUESTION, SCHEMA, Weather
from harness import MODEL, Server

pytestmark = [pytest.mark.clients, pytest.mark.engine]
TOOL: FunctionToolParam = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}


def client_of(engine: Server) -> OpenAI:
    return OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("named", [True, False])
def test_chat_conversation(engine: Server, named: bool) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
    with client_of(engine) as client:
        first = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=[{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}],
            tool_choice={"type": "function", "function": {"name": "get_weather"}} if named else "required",
            temperature=0,
            max_tokens=MAX_TOKENS,
        )
        [call] = first.choices[0].message.tool_calls or []
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        assert Weather.model_validate_json(call.function.arguments)
        # The SDK's own object goes back, as applications send it.
        messages.append(first.choices[0].message)  # type: ignore[arg-type]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": FORECAST})
        whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=MAX_TOKENS)
        with client.chat.completions.stream(
            model=MODEL, messages=messages, temperature=0, max_tokens=MAX_TOKENS
        ) as stream:
            streamed = stream.get_final_completion()
    assert whole.choices[0].message.content
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason


def test_streamed_tool_call(engine: Server) -> None:
    with (
        client_of(engine) as client,
        client.chat.completions.stream(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            tools=[{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}],
            tool_choice="required",
            temperature=0,
            max_tokens=MAX_TOKENS,
        ) as stream,
    ):
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert Weather.model_validate(call.function.parsed_arguments)


def test_responses_conversation(engine: Server) -> None:
    with client_of(engine) as client:
        first = client.responses.create(
            model=MODEL, input=QUESTION, tools=[TOOL], tool_choice="required", temperature=0
        )
        [call] = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
        assert Weather.model_validate_json(call.arguments)
        second = client.responses.create(
            model=MODEL,
            previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": FORECAST}],
            temperature=0,
            max_output_tokens=MAX_TOKENS,
        )
        # The same conversation carried by the caller instead of the server.
        with client.responses.stream(
            model=MODEL,
            input=[
                {"role": "user", "content": QUESTION},
                *(item.to_dict() for item in first.output),  # type: ignore[list-item]
                {"type": "function_call_output", "call_id": call.call_id, "output": FORECAST},
            ],
            temperature=0,
            max_output_tokens=MAX_TOKENS,
        ) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
    assert second.output_text
    assert streamed.output_text == second.output_text
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_parsed_answer(engine: Server) -> None:
    with client_of(engine) as client:
        chat = client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], response_format=Weather, temperature=0
        )
        response = client.responses.parse(model=MODEL, input=QUESTION, text_format=Weather, temperature=0)
    assert isinstance(chat.choices[0].message.parsed, Weather)
    assert response.output_parsed == chat.choices[0].message.parsed


def test_overflow_is_told_by_its_code(engine: Server) -> None:
    with client_of(engine) as client, pytest.raises(APIStatusError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 4000}])
    assert (refused.value.status_code, refused.value.code) == (400, "context_length_exceeded")
