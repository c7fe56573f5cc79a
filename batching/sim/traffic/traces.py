"""Trace files as workloads: Azure's CSV, Mooncake's JSONL, our own JSONL, and results of `vllm bench serve`.

Every complaint is a UsageError that names the file, the line and the field.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from burrstone.batching.core.requests import NO_DEADLINE_S
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.trace_rows import (
    TraceRow,
    count,
    count_or_zero,
    hash_ids,
    json_lines,
    mapping,
    number,
    numbers,
    open_text,
    seconds,
)
from burrstone.batching.sim.traffic.workload_types import NONE, Floats, Prefixes, Workload

_MOONCAKE_BLOCK_TOKENS = 512
_AZURE_FIELDS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_CANONICAL_FIELDS = {
    *("t_ms", "input_len", "output_len", "hash_ids", "block", "tenant", "session", "turn", "parent", "tool_ms", "slo"),
}
_SLO_FIELDS = {"ttft_ms": "ttft_s", "tpot_ms": "tpot_s", "e2e_ms": "e2e_s"}


def read_trace(path: Path) -> Workload:
    """A trace of any kind that this module reads, told apart by its ending and its first line."""
    if path.suffix == ".csv":
        return read_azure(path)
    if path.suffix == ".json":
        return read_vllm_bench(path)
    if path.suffix == ".jsonl":
        row = next(json_lines(path))
        return read_mooncake(path) if "timestamp" in row.values else read_canonical(path)
    raise UsageError(f"{path}: a trace ends in .csv (Azure), .jsonl (Mooncake or ours) or .json (vllm bench serve)")


def read_azure(path: Path) -> Workload:
    """Azure's LLM inference traces: arrival times and lengths, nothing shared. A generation of 0 tokens counts as 1."""
    arrival_s, inputs, outputs = [], [], []
    with open_text(path) as file:
        reader = csv.DictReader(file)
        missing = [name for name in _AZURE_FIELDS if name not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(f"{path}:1: no column {missing[0]}; an Azure trace has {', '.join(_AZURE_FIELDS)}")
        for values in reader:
            row = TraceRow(path, reader.line_num, values)
            arrival_s.append(row.read("TIMESTAMP", seconds, "a time such as 2023-11-16 18:15:46.68"))
            inputs.append(row.read("ContextTokens", count, "an integer >= 1"))
            outputs.append(max(1, row.read("GeneratedTokens", count_or_zero, "an integer >= 0")))
    return _workload(path, np.array(arrival_s), inputs, outputs)


def read_mooncake(path: Path, *, seed: int = 0) -> Workload:
    """Mooncake's traces, with a hash for each full block of 512 prompt tokens.

    Their times are rounded to some seconds: requests of one time are spread evenly at random, in their order, until
    the next time that occurs.
    """
    times_ms, inputs, outputs, hashes = [], [], [], []
    for row in json_lines(path):
        times_ms.append(row.read("timestamp", number, "milliseconds >= 0"))
        inputs.append(row.read("input_length", count, "an integer >= 1"))
        outputs.append(row.read("output_length", count, "an integer >= 1"))
        ids = row.read("hash_ids", hash_ids, "a list of integers >= 0")
        # The last block is mostly not full, and is not found in a cache then.
        hashes.append(ids[: inputs[-1] // _MOONCAKE_BLOCK_TOKENS])
    arrival_s = spread_rounded(np.array(times_ms) / 1000.0, seed)
    return _workload(path, arrival_s, inputs, outputs, prefixes=_prefixes(hashes, _MOONCAKE_BLOCK_TOKENS))


def spread_rounded(times_s: Floats, seed: int) -> Floats:
    """Arrivals at the same time, drawn uniformly from there to the next time that occurs; the order stays."""
    distinct, place = np.unique(times_s, return_inverse=True)
    gaps = np.diff(distinct)
    gaps = np.append(gaps, np.median(gaps) if len(gaps) else 0.0)
    spread = np.empty(len(times_s))
    drawn = times_s + np.random.default_rng(seed).random(len(times_s)) * gaps[place]
    spread[np.argsort(times_s, kind="stable")] = np.sort(drawn)
    return spread


def read_canonical(path: Path) -> Workload:
    """Our own format, one JSON object a line: t_ms, input_len, output_len, and where they are known hash_ids (of full
    blocks, one size `block` in a file), tenant, session, turn, parent (line of the call it follows, from 0) with
    tool_ms, and slo with ttft_ms, tpot_ms, e2e_ms."""
    rows = list(json_lines(path))
    for row in rows:
        row.refuse_all_but(_CANONICAL_FIELDS)
    tenants: dict[str, int] = {}
    sessions: dict[str, int] = {}
    slo = {name: np.full(len(rows), NO_DEADLINE_S) for name in _SLO_FIELDS.values()}
    for place, row in enumerate(rows):
        limits = TraceRow(path, row.line, row.read_or("slo", mapping, "an object", {}), "slo.")
        limits.refuse_all_but(set(_SLO_FIELDS))
        for field, name in _SLO_FIELDS.items():
            slo[name][place] = limits.read_or(field, number, "milliseconds >= 0", NO_DEADLINE_S) / 1000.0
    return _workload(
        path,
        np.array([row.read("t_ms", number, "milliseconds >= 0") for row in rows]) / 1000.0,
        [row.read("input_len", count, "an integer >= 1") for row in rows],
        [row.read("output_len", count, "an integer >= 1") for row in rows],
        tenant=np.array([_numbered(tenants, row.values.get("tenant", "default")) for row in rows]),
        program=np.array(
            [_numbered(sessions, row.values["session"]) if "session" in row.values else NONE for row in rows]
        ),
        turn=np.array([row.read_or("turn", count_or_zero, "an integer >= 0", 0) for row in rows]),
        after=np.array([row.read_or("parent", count_or_zero, "the number of a line, from 0", NONE) for row in rows]),
        think_s=np.array([row.read_or("tool_ms", number, "milliseconds >= 0", 0.0) for row in rows]) / 1000.0,
        prefixes=_canonical_prefixes(rows),
        **slo,
    )


def read_vllm_bench(path: Path) -> Workload:
    """The result of `vllm bench serve --save-result --save-detailed`: the requests that it sent and that succeeded."""
    with open_text(path) as file:
        try:
            values = json.load(file)
        except ValueError as error:
            raise UsageError(f"{path}: not JSON: {error}") from None
    result = TraceRow(path, 1, values)
    starts = np.array(result.read("start_times", numbers, "a list of seconds; save with --save-detailed"))
    inputs = result.read("input_lens", numbers, "a list of integers")
    outputs = result.read("output_lens", numbers, "a list of integers")
    if not len(starts) == len(inputs) == len(outputs):
        raise UsageError(f"{path}: start_times, input_lens and output_lens must be equally long")
    kept = np.flatnonzero((np.array(inputs) >= 1) & (np.array(outputs) >= 1))
    return _workload(path, starts[kept], np.array(inputs)[kept], np.array(outputs)[kept])


def _numbered(numbers_of: dict[str, int], name: object) -> int:
    """Names become small integers, in order of appearance."""
    return numbers_of.setdefault(str(name), len(numbers_of))


def _canonical_prefixes(rows: list[TraceRow]) -> Prefixes | None:
    block_tokens = 0
    hashes: list[list[int]] = []
    for row in rows:
        hashes.append(row.read_or("hash_ids", hash_ids, "a list of integers >= 0", []))
        if hashes[-1]:
            block = row.read("block", count, "an integer >= 1: tokens that one of hash_ids covers")
            if block_tokens and block != block_tokens:
                row.fail(f"block must be the same in the whole file, got {block} after {block_tokens}")
            if len(hashes[-1]) * block > row.values["input_len"] + row.values["output_len"]:
                row.fail(f"hash_ids has {len(hashes[-1])} blocks of {block} tokens, more than input_len and output_len")
            block_tokens = block
    return _prefixes(hashes, block_tokens) if block_tokens else None


def _prefixes(hashes: list[list[int]], block_tokens: int) -> Prefixes:
    starts = np.cumsum([0, *map(len, hashes)], dtype=np.int64)
    flat = np.fromiter((value for ids in hashes for value in ids), np.uint64, count=int(starts[-1]))
    return Prefixes(starts, flat, block_tokens)


def _workload(path: Path, arrival_s: Floats, inputs: Any, outputs: Any, **columns: Any) -> Workload:
    """The columns in order of arrival, which begins at 0."""
    if len(arrival_s) == 0:
        raise UsageError(f"{path}: no requests")
    prefixes = columns.pop("prefixes", None)
    order = np.argsort(arrival_s, kind="stable")
    unsorted = {"input_tokens": np.array(inputs), "output_tokens": np.array(outputs), **columns}
    sorted_ = {name: column[order] for name, column in unsorted.items()}
    if "after" in sorted_:
        place = np.full(len(order) + 1, NONE)
        place[order] = np.arange(len(order))
        if np.any(sorted_["after"] >= len(order)):
            raise UsageError(f"{path}: parent must be the number of a line of the file, from 0 to {len(order) - 1}")
        sorted_["after"] = place[sorted_["after"]]
    if prefixes is not None:
        parts = [prefixes.hashes[prefixes.starts[row] : prefixes.starts[row + 1]].tolist() for row in order]
        prefixes = _prefixes(parts, prefixes.block_tokens)
    try:
        return Workload(arrival_s[order] - arrival_s[order[0]], **sorted_, prefixes=prefixes)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
