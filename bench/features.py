"""What prefix caching and n-gram speculation bring on this machine: servers that differ in one key, loaded in turns.

The plain server is loaded twice a round; how far it is from itself is the noise.
"""

import http.client
import json
import statistics
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli.traffic import GENERATORS
from burrstone.bench.load.drive import Terms
from burrstone.bench.load.offer import Plan, offer_whole
from burrstone.bench.load.prompts import WORDS
from burrstone.bench.load.record import Record
from burrstone.bench.machine import machine
from burrstone.bench.peers.servers import all_running
from burrstone.bench.peers.table import MODEL, burrstone
from burrstone.bench.stream_load import turns
from burrstone.serving.config import EMBEDDED_MODEL

RECORD_TOKENS, QUESTIONS = 1500, 10
GOALS = {"uncached_tokens_saved": 0.86, "ttft_ratio": 3.0, "speculation_tokens_per_s_ratio": 1.3}
_FLAGS = {
    "plain": (),
    "no cache": ("--engine.enable-prefix-caching", "false"),
    "n-gram": ("--engine.speculative.method", "ngram"),
}
_TURNS = ("plain", "no cache", "n-gram", "plain again")
_EDIT_TOKENS = 128
_EDITS = 3


@dataclass(slots=True)
class Round:
    """What one server showed in one round. texts: of the edits."""

    prompt_tokens: int
    cached_tokens: int
    mean_ttft_s: float
    edit_tokens_per_s: float
    texts: list[str]


def measure_features(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Raises UsageError when a server does not start or a request fails."""
    launches = {name: burrstone(EMBEDDED_MODEL, *flags) for name, flags in _FLAGS.items()}
    found: dict[str, list[Round]] = {turn: [] for turn in _TURNS}
    with all_running(launches, say):
        for launch in launches.values():
            _edits(launch.url, 0)
        for number, turn in enumerate(turns(_TURNS, rounds, say)):
            url = launches[turn.removesuffix(" again")].url
            questions = _questions(url, seed=number)
            found[turn].append(_round(questions, *_edits(url, 1 + number // len(_TURNS))))
    return summarize(found)


def summarize(found: Mapping[str, list[Round]]) -> dict[str, Any]:
    """Each round is compared with its own."""
    rounds = [dict(zip(_TURNS, those, strict=True)) for those in zip(*(found[turn] for turn in _TURNS), strict=True)]

    def row(goal: str, values: list[float], noise: list[float] | None = None) -> dict[str, Any]:
        value = round(statistics.median(values), 3)
        told = {"value": value, "goal": f">= {GOALS[goal]:g}", "ok": value >= GOALS[goal]}
        told |= {"rounds": [round(value, 3) for value in values]}
        return told if noise is None else told | {"noise": round(statistics.median(noise), 3)}

    def uncached(one: Round) -> int:
        return one.prompt_tokens - one.cached_tokens

    return {
        "uncached_tokens_saved": row(
            "uncached_tokens_saved",
            [1 - uncached(each["plain"]) / uncached(each["no cache"]) for each in rounds],
        ),
        "ttft_ratio": row(
            "ttft_ratio",
            [2 * each["no cache"].mean_ttft_s / _sum(each, "mean_ttft_s") for each in rounds],
            [abs(each["plain"].mean_ttft_s / each["plain again"].mean_ttft_s - 1) for each in rounds],
        ),
        "speculation_tokens_per_s_ratio": row(
            "speculation_tokens_per_s_ratio",
            [2 * each["n-gram"].edit_tokens_per_s / _sum(each, "edit_tokens_per_s") for each in rounds],
            [abs(each["plain"].edit_tokens_per_s / each["plain again"].edit_tokens_per_s - 1) for each in rounds],
        )
        | {"same_texts": all(each["n-gram"].texts == each["plain"].texts for each in rounds)},
        "setting": machine()
        | {"model": EMBEDDED_MODEL, "rounds": len(rounds), "record_tokens": RECORD_TOKENS, "questions": QUESTIONS}
        | {
            "mean_ttft_s": {
                turn: round(statistics.median(one.mean_ttft_s for one in found[turn]), 4) for turn in _TURNS
            },
            "edit_tokens_per_s": {
                turn: round(statistics.median(one.edit_tokens_per_s for one in found[turn]), 1) for turn in _TURNS
            },
        },
    }


def _sum(each: Mapping[str, Round], name: str) -> float:
    return float(getattr(each["plain"], name) + getattr(each["plain again"], name))


def _round(questions: list[Record], tokens_per_s: float, texts: list[str]) -> Round:
    return Round(
        prompt_tokens=sum(record.prompt_tokens or 0 for record in questions),
        cached_tokens=sum(record.cached_tokens or 0 for record in questions),
        mean_ttft_s=statistics.fmean(record.ttft_s for record in questions),
        edit_tokens_per_s=tokens_per_s,
        texts=texts,
    )


def _questions(url: str, seed: int) -> list[Record]:
    """One record that nobody has seen before, and questions about it, one after the other."""
    made = GENERATORS["rag"].make(QUESTIONS, 10.0, seed, texts=1, shared=RECORD_TOKENS, own=20, output=16)
    plan = Plan(made.take(np.arange(QUESTIONS)), Terms(models=(MODEL,)), url, concurrency=1, seed=seed)
    records = offer_whole(plan).records
    if failed := [record.error for record in records if record.error is not None]:
        raise UsageError(f"{url}: {failed[0]}")
    return records


def _edits(url: str, seed: int) -> tuple[float, list[str]]:
    """Output tokens per second of one stream that has texts copied with a change, and what it wrote."""
    texts, tokens, took_s = [], 0, 0.0
    for number in range(_EDITS):
        start = 61 * (seed * _EDITS + number)
        text = " ".join(WORDS[(start + 7 * place) % len(WORDS)] for place in range(100))
        prompt = f"Here is a list of words:\n{text}\n\nHere is the same list, with a full stop at its end:\n{text[:40]}"
        body = {"model": MODEL, "prompt": prompt, "max_tokens": _EDIT_TOKENS, "temperature": 0, "ignore_eos": True}
        began_s = time.monotonic()
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300.0) as reply:
                answer = json.load(reply)
        except (OSError, http.client.HTTPException) as error:
            raise UsageError(f"{url}: {error}") from error
        took_s += time.monotonic() - began_s
        tokens += answer["usage"]["completion_tokens"]
        texts.append(answer["choices"][0]["text"])
    return tokens / took_s, texts
