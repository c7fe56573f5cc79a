"""How many engines: the smallest fleet that keeps a promise, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from burrstone.batching.sim.measures import interval
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Workload

_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Attained:
    """Attainment of a fleet over seeds. `low`: what it is with confidence, the interval's lower end from three seeds on,
    else the worst seed."""

    engines: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, engines: int, by_seed: list[float]) -> "Attained":
        """by_seed: attainment of each seed."""
        mean, half = interval(np.array(by_seed))
        if math.isnan(half):
            return cls(engines, mean, min(by_seed), max(by_seed))
        return cls(engines, mean, max(mean - half, 0.0), min(mean + half, 1.0))


def fewest(spec: EngineSpec, workload: Workload, duration_s: float) -> int:
    """Engines below which the work cannot be done, however it is scheduled: full batches, each shared prefix once."""
    model = spec.step_model
    prompt_tokens = float(workload.input_tokens.sum())
    if spec.prefix_caching and workload.prefixes is not None:
        hashes = workload.prefixes.hashes
        prompt_tokens -= (len(hashes) - len(np.unique(hashes))) * workload.prefixes.block_tokens
    prompt_s = max(prompt_tokens, 0.0) * model.prefill_token_s
    token_s = model.decode_seq_s + model.base_s / spec.max_num_seqs
    return max(1, math.floor((prompt_s + float(workload.output_tokens.sum()) * token_s) / duration_s))


def smallest(
    attained: Callable[[int], Attained], goal: float, start: int, most: int
) -> tuple[Attained | None, list[Attained]]:
    """The smallest fleet from `start` to `most` engines whose `low` reaches the goal, and all that were tried, by size.

    More engines are taken to do no worse; None where not even `most` is enough.
    """
    tried: dict[int, Attained] = {}

    def keeps(engines: int) -> bool:
        if engines not in tried:
            tried[engines] = attained(engines)
        return tried[engines].low >= goal

    below, size = start - 1, min(start, most)
    while not keeps(size):
        if size == most:
            return None, _by_size(tried)
        below, size = size, min(max(size + 1, math.ceil(size * _GROWTH)), most)
    while size - below > 1:
        middle = (below + size) // 2
        below, size = (below, middle) if keeps(middle) else (middle, size)
    return tried[size], _by_size(tried)


def cost_per_million_tokens(hourly: float, output_tokens_per_s: float) -> float:
    """What a million output tokens cost, for a fleet at this price an hour."""
    if output_tokens_per_s <= 0:
        return math.inf
    return hourly / 3600 / output_tokens_per_s * 1e6


def _by_size(tried: dict[int, Attained]) -> list[Attained]:
    return [tried[engines] for engines in sorted(tried)]
