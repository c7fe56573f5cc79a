"""instructor: typed answers by tools and by JSON schema, chat and Responses, whole and partial."""

from functools import partial

import instructor
from openai import AsyncOpenAI

from cells import Cell, Weather, base_url, expect, model_name, run

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
CHAT_MODES = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA")


def client_of(mode: str) -> instructor.AsyncInstructor:
    client = AsyncOpenAI(base_url=base_url(), api_key="none", max_retries=0)
    return instructor.from_openai(client, mode=instructor.Mode[mode])


async def whole(mode: str, limit: str) -> None:
    answer = await client_of(mode).create(
        model=model_name(), messages=MESSAGES, response_model=Weather, max_retries=0, temperature=0, **{limit: 64}
    )
    expect(isinstance(answer, Weather), "an instance of the type")


async def streamed(mode: str) -> None:
    last = None
    async for piece in client_of(mode).create_partial(
        model=model_name(), messages=MESSAGES, response_model=Weather, max_retries=0, temperature=0, max_tokens=64
    ):
        last = piece
    expect(last is not None and last.city in ("Paris", "Rome"), "a last partial that is complete")


def cells() -> dict[str, Cell]:
    found: dict[str, Cell] = {f"chat {mode}": partial(whole, mode, "max_tokens") for mode in CHAT_MODES}
    found |= {f"chat {mode} partial": partial(streamed, mode) for mode in ("TOOLS", "JSON_SCHEMA")}
    return found | {"responses RESPONSES_TOOLS": partial(whole, "RESPONSES_TOOLS", "max_output_tokens")}


if __name__ == "__main__":
    run(cells())
