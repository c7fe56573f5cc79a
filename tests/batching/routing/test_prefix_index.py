"""The prefix index against an ordinary ordered dict, in random lives; and the order in which blocks are evicted."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.routing.prefix_index import cached_blocks, forget_engine, new_prefix_index, use_blocks


def blocks(*hashes: int) -> np.ndarray:
    return np.array(hashes, dtype=np.uint64)


class Model:
    """One engine's cache, least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def use(self, hashes: list[int]) -> None:
        for value in reversed(hashes[: self.capacity]):
            self.blocks.pop(value, None)
            self.blocks[value] = None
            if len(self.blocks) > self.capacity:
                self.blocks.popitem(last=False)

    def cached(self, hashes: list[int]) -> int:
        return next((place for place, value in enumerate(hashes) if value not in self.blocks), len(hashes))


PROMPTS = st.lists(st.integers(0, 30), max_size=8, unique=True)
STEPS = st.lists(st.tuples(st.sampled_from(["use", "look", "forget"]), st.integers(0, 2), PROMPTS), max_size=60)


@settings(deadline=None, max_examples=60)
@given(capacity=st.integers(1, 9), steps=STEPS)
def test_it_holds_what_an_lru_cache_holds(capacity: int, steps: list[tuple[str, int, list[int]]]) -> None:
    index = new_prefix_index(3, capacity)
    models = [Model(capacity) for _ in range(3)]
    for step, engine, prompt in steps:
        if step == "use":
            use_blocks(index, engine, blocks(*prompt))
            models[engine].use(prompt)
        elif step == "forget":
            forget_engine(index, engine)
            models[engine] = Model(capacity)
        for number, model in enumerate(models):
            assert cached_blocks(index, number, blocks(*prompt)) == model.cached(prompt)


def test_the_start_of_a_prompt_outlives_its_end() -> None:
    index = new_prefix_index(1, 4)
    use_blocks(index, 0, blocks(1, 2, 3, 4))
    use_blocks(index, 0, blocks(9))
    assert cached_blocks(index, 0, blocks(1, 2, 3, 4)) == 3


def test_a_prompt_longer_than_the_cache_leaves_its_first_blocks() -> None:
    index = new_prefix_index(1, 2)
    use_blocks(index, 0, blocks(1, 2, 3))
    assert cached_blocks(index, 0, blocks(1, 2, 3)) == 2


def test_an_index_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        new_prefix_index(4, 0)
