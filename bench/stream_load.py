"""The load that throughput is measured under: streams that make their requests one after the other."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from burrstone.bench.peers.table import MODEL
from burrstone.bench.stream_client import StreamClient

_WORDS = [
    "stone",
    "mill",
    "wheel",
    "river",
    "grain",
    "flour",
    "bread",
    "oven",
    "salt",
    "field",
    "plough",
    "seed",
    "rain",
    "cloud",
    "wind",
    "sun",
]


@dataclass(frozen=True, slots=True)
class Load:
    """Every stream makes `requests_per_stream` requests of `output_tokens` tokens."""

    requests_per_stream: int
    output_tokens: int


class Prompts:
    """Bodies whose prompts differ from their first word on, so that no prefix is cached. api: chat or completions."""

    def __init__(self, api: str) -> None:
        self._numbers = itertools.count()
        self._chat = api == "chat"

    def body(self, max_tokens: int) -> dict[str, Any]:
        number = next(self._numbers)
        words = " ".join(_WORDS[(number * 7 + i * (1 + number % 13)) % len(_WORDS)] for i in range(24))
        text = f"{number}: {words}"
        prompt = {"messages": [{"role": "user", "content": text}]} if self._chat else {"prompt": text}
        return {"model": MODEL, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True} | prompt


def turns(names: tuple[str, ...], rounds: int, say: Callable[[str], None]) -> Iterator[str]:
    """Each name once a round; another one goes first each time, so that none always follows the same neighbour."""
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            say(f"round {number + 1} of {rounds}: {name}")
            yield name


async def throughput(client: StreamClient, prompts: Prompts, load: Load, streams: int) -> float:
    """Output tokens per second of `streams` clients at once."""

    async def one_client() -> None:
        for _ in range(load.requests_per_stream):
            answer = await client.stream(prompts.body(load.output_tokens))
            if answer.num_tokens != load.output_tokens:
                raise RuntimeError(f"an answer of {load.output_tokens} tokens has {answer.num_tokens}")

    loop = asyncio.get_running_loop()
    started_s = loop.time()
    await asyncio.gather(*(one_client() for _ in range(streams)))
    return streams * load.requests_per_stream * load.output_tokens / (loop.time() - started_s)
