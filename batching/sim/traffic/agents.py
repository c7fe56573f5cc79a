"""Agent programs: calls that build on one another, with a tool at work between them."""

from dataclasses import dataclass

import numpy as np

from burrstone.batching.sim.traffic.arrivals import Lengths, LogNormal, poisson_arrivals
from burrstone.batching.sim.traffic.workload_types import NONE, Prefixes, Workload

_TASK = LogNormal(1500, 0.6)
_TOOL = LogNormal(600, 0.8, most=8192)
_ANSWER = LogNormal(200, 0.7, most=2048)


@dataclass(frozen=True, slots=True)
class AgentLoad:
    """Programs of about `turns` calls. A call's prompt is the last one's prompt and answer, and what the tool gave."""

    programs_per_s: float
    turns: float = 10.0  # on average
    turns_spread: float | None = None  # even within this share of `turns` either way; None: geometric, at least 1
    system_tokens: int = 1024  # the start that all programs share
    task_tokens: Lengths = _TASK
    tool_tokens: Lengths = _TOOL
    output_tokens: Lengths = _ANSWER
    tool_median_s: float = 2.0
    tool_sigma: float = 1.0
    tools_seen: bool = True  # tools are called by the API, so the engine learns which answer calls none
    block_tokens: int = 16


def agent_programs(load: AgentLoad, duration_s: float, seed: int) -> Workload:
    """Programs that begin in [0, duration_s). Each call after the first comes a pause after the one before it."""
    rng = np.random.default_rng(seed)
    begins_s = poisson_arrivals(rng, load.programs_per_s, duration_s)
    turns = _turns(rng, load, len(begins_s))
    size = int(turns.sum())
    program = np.repeat(np.arange(len(turns)), turns)
    first = np.repeat(np.cumsum(turns) - turns, turns)
    turn = np.arange(size) - first
    outputs = load.output_tokens.draw(rng, size)
    added = np.where(turn == 0, load.system_tokens + load.task_tokens.draw(rng, size), load.tool_tokens.draw(rng, size))
    # What a call appends for the next one: what it was given and what it said.
    told = np.cumsum(added + outputs)
    inputs = told - outputs - np.repeat((told - added - outputs)[turn == 0], turns)
    think_s = np.where(turn == 0, 0.0, load.tool_median_s * np.exp(load.tool_sigma * rng.standard_normal(size)))
    pauses_s = np.cumsum(think_s)
    # Only a place in the order: the real time follows from the call before.
    arrival_s = begins_s[program] + pauses_s - pauses_s[first]
    order = np.lexsort((turn, program, arrival_s))
    place = np.empty(size, np.int64)
    place[order] = np.arange(size)
    after = np.where(turn == 0, NONE, place[np.maximum(np.arange(size) - 1, 0)])
    final = np.repeat(turns, turns) == turn + 1
    return Workload(
        arrival_s[order],
        inputs[order],
        outputs[order],
        program=program[order],
        turn=turn[order],
        after=after[order],
        think_s=think_s[order],
        final=(final & load.tools_seen)[order],
        prefixes=_append_only(program[order], (inputs + outputs)[order], load, seed),
    )


def _turns(rng: np.random.Generator, load: AgentLoad, size: int) -> np.ndarray:
    if load.turns_spread is None:
        return rng.geometric(1.0 / load.turns, size)
    reach = round(load.turns * load.turns_spread)
    return rng.integers(round(load.turns) - reach, round(load.turns) + reach, size, endpoint=True)


def _append_only(program: np.ndarray, tokens: np.ndarray, load: AgentLoad, seed: int) -> Prefixes:
    """A program's n-th block is the same in all its calls; the blocks within system_tokens are all programs'."""
    counts = tokens // load.block_tokens
    starts = np.concatenate([[0], np.cumsum(counts)])
    block = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    owner = np.where(block < load.system_tokens // load.block_tokens, 0, np.repeat(program, counts) + 1)
    text = (np.uint64(seed & 0xFFFF) << np.uint64(48)) + (owner.astype(np.uint64) << np.uint64(24))
    return Prefixes(starts, text + block.astype(np.uint64), load.block_tokens)
