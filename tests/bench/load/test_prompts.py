"""Prompts have the workload's lengths, are alike where its prefixes are, and differ everywhere else."""

import numpy as np
import pytest

from burrstone.batching.sim.traffic.agents import AgentLoad, agent_programs
from burrstone.batching.sim.traffic.arrivals import Fixed
from burrstone.batching.sim.traffic.shared import SharedLoad, shared_beginnings
from burrstone.batching.sim.traffic.workload import evenly
from burrstone.batching.sim.traffic.workload_types import NONE, Workload
from burrstone.bench.load.prompts import WORDS, Prompts, followers


def shared(texts: int = 3) -> Workload:
    return shared_beginnings(SharedLoad(20.0, texts, 64, Fixed(10), Fixed(5)), 3.0, seed=4)


def test_words_are_as_many_as_tokens_and_all_different() -> None:
    assert len(set(WORDS)) == len(WORDS) > 200
    workload = Workload(np.zeros(5), np.array([1, 5, 40, 40, 300]), np.ones(5, np.int64))
    texts = [Prompts(workload, 0).first(number) for number in range(5)]
    assert [len(text.split()) for text in texts] == [1, 5, 40, 40, 300]
    assert texts[2] != texts[3]
    assert texts == [Prompts(workload, 0).first(number) for number in range(5)]
    assert texts != [Prompts(workload, 1).first(number) for number in range(5)]


def test_requests_with_the_same_beginning_share_its_words_and_no_more() -> None:
    workload = shared()
    prompts = Prompts(workload, 0)
    texts = [prompts.first(number).split() for number in range(len(workload))]
    assert {len(text) for text in texts} == {74}
    assert len({tuple(text[:64]) for text in texts}) == 3
    assert len({tuple(text[64:]) for text in texts}) == len(texts)


def test_equal_beginnings_are_equal_hashes() -> None:
    workload = shared()
    prefixes = workload.prefixes
    assert prefixes is not None and len(prefixes.hashes) == 4 * len(workload)
    heads = prefixes.hashes.reshape(-1, 4)
    assert len(np.unique(heads, axis=0)) == 3 and len(np.unique(heads)) == 12
    one = shared(texts=1).prefixes
    assert one is not None and len(np.unique(one.hashes)) == 4


def test_programs_share_their_system_prompt() -> None:
    load = AgentLoad(5.0, 3, system_tokens=64, task_tokens=Fixed(32), tool_tokens=Fixed(16), output_tokens=Fixed(16))
    workload = agent_programs(load, 2.0, seed=0)
    prompts = Prompts(workload, 0)
    first = [number for number in range(len(workload)) if workload.after[number] == NONE]
    texts = [prompts.first(number).split() for number in first]
    assert len(texts) > 3 and {len(text) for text in texts} == {96}
    assert len({tuple(text[:64]) for text in texts}) == 1 and len({tuple(text) for text in texts}) == len(texts)
    following = followers(workload)
    assert sorted(number for after in following.values() for number in after) == [
        number for number in range(len(workload)) if number not in first
    ]


def test_evenly() -> None:
    workload = evenly(shared())
    gaps = np.diff(workload.arrival_s)
    assert gaps == pytest.approx(gaps[0]) and workload.arrival_s[-1] == pytest.approx(shared().arrival_s[-1])
    with pytest.raises(ValueError, match="cannot arrive evenly"):
        evenly(agent_programs(AgentLoad(5.0, 3), 2.0, seed=0))
