"""`burrstone sim fleet --neuron`: which prompt lengths to compile graphs for."""

from typing import TypedDict

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.shapes.bounds import bounds_of
from burrstone.batching.shapes.lengths import LengthHistogram
from burrstone.batching.shapes.planner import planner
from burrstone.batching.sim.cli.output import print_table
from burrstone.batching.sim.report.page import Section, table
from burrstone.batching.sim.traffic.workload_types import Workload

_GRANULE_TOKENS = 128
_HEAD = ("planner", "padding", "bounds")


class Buckets(TypedDict):
    """What one planner chose on the first half of the traffic. padding: computed over real tokens on the second half."""

    planner: str
    bounds: list[int]
    padding: float


def buckets(workload: Workload, graphs: int, max_model_len: int | None) -> list[Buckets]:
    """Each planner's choice. The model's maximum is the longest prompt's if none is given. Raises UsageError."""
    lengths = workload.input_tokens
    longest = int(lengths.max())
    most = max_model_len or -(-longest // _GRANULE_TOKENS) * _GRANULE_TOKENS
    if longest > most:
        raise UsageError(f"--max-model-len {most}: the traffic has a prompt of {longest} tokens; give at least that")
    if len(lengths) < 2:
        raise UsageError("--neuron: needs two requests at least; make --duration-s longer")
    first, second = np.array_split(lengths, 2)
    histogram = LengthHistogram(most, _GRANULE_TOKENS)
    histogram.add(first)
    found: list[Buckets] = []
    for name in ("pow2", "dp-buckets"):
        bounds = planner(name).bounds(histogram, graphs)
        padding = float(bounds_of(bounds, second).sum() / second.sum())
        found.append({"planner": name, "bounds": list(bounds), "padding": padding})
    return found


def print_buckets(found: list[Buckets]) -> None:
    print()
    print_table("Graphs, chosen on the first half of the prompts, judged on the second", _HEAD, _rows(found))


def buckets_section(found: list[Buckets]) -> Section:
    text = (
        "Computed over real prompt tokens; bounds are chosen on the first half of the prompts and judged on the second."
    )
    return Section("Which lengths to compile for", text, table(_HEAD, _rows(found)))


def _rows(found: list[Buckets]) -> list[list[str]]:
    return [[b["planner"], f"{b['padding']:.3f}", " ".join(map(str, b["bounds"]))] for b in found]
