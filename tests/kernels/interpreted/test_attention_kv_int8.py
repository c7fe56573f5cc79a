"""K6: attention over the paged INT8 cache."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from burrstone.kernels.kv_cache import KVCache, write
from burrstone.kernels.measure.bars import relative
from burrstone.kernels.ops import attention_kv_int8 as op

PAGE_TOKENS = 16


def filled(lengths: list[int], kv_heads: int, head_dim: int) -> tuple[KVCache, Tensor]:
    """A cache whose pages are out of order, and poisoned wherever no sequence's token is."""
    counts = [-(-length // PAGE_TOKENS) for length in lengths]
    pages = torch.randperm(sum(counts) + 1)
    cache = KVCache.empty(len(pages), kv_heads, PAGE_TOKENS, head_dim, torch.device("cpu"))
    for scales in (cache.key_scales, cache.value_scales):
        scales.fill_(math.nan)
    # What a table holds beyond its sequence's pages is nobody's page.
    tables = torch.full((len(lengths), max([*counts, 1]) + 1), 10**6, dtype=torch.int32)
    begin = 0
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = pages[begin : begin + count]
        tables[sequence, :count] = mine.to(torch.int32)
        slots = (mine[:, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS)[None, :]).flatten()[:length]
        for plane, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
            write(plane, scales, torch.randn(length, kv_heads, head_dim), slots)
        begin += count
    return cache, tables


def exact(query: Tensor, cache: KVCache, tables: Tensor, lengths: list[int], scale: float) -> Tensor:
    """In float64, token by token, over what the cache holds."""
    group = query.shape[1] // cache.keys.shape[1]
    out = torch.zeros(query.shape, dtype=torch.float64)
    for sequence, length in enumerate(lengths):
        for head in range(query.shape[1]):
            at = [(int(tables[sequence, t // PAGE_TOKENS]), head // group, t % PAGE_TOKENS) for t in range(length)]
            if at:
                keys = torch.stack([cache.keys[place].double() * cache.key_scales[place].double() for place in at])
                values = torch.stack(
                    [cache.values[place].double() * cache.value_scales[place].double() for place in at]
                )
                out[sequence, head] = (keys @ query[sequence, head].double() * scale).softmax(dim=0) @ values
    return out


def run(query: Tensor, cache: KVCache, tables: Tensor, lengths: list[int], scale: float, splits: int) -> Tensor:
    """What was in the outputs before must not matter."""
    sequences, heads, head_dim = query.shape
    out = torch.full((sequences, heads, head_dim), math.nan, dtype=query.dtype)
    arrivals = torch.zeros(sequences * cache.keys.shape[1], dtype=torch.int32)
    parts = torch.full((len(arrivals) * splits * 32 * (128 + 2),), math.nan)
    told = torch.tensor(lengths, dtype=torch.int32)
    for _ in range(2):
        op.launch(out, query, *cache.tensors, tables, told, scale, parts, arrivals, splits)
        assert not arrivals.any(), "the next launch would count on"
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 1, 64), (3, 3, 64), (14, 2, 80), (16, 2, 128), (17, 1, 32)]
)
@pytest.mark.parametrize("splits", [1, 4])
def test_attention(heads: int, kv_heads: int, head_dim: int, splits: int) -> None:
    torch.manual_seed(heads)
    lengths = [1, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1, 0, 150]
    cache, tables = filled(lengths, kv_heads, head_dim)
    query = torch.randn(len(lengths), heads, head_dim, dtype=torch.bfloat16)
    found = run(query, cache, tables, lengths, head_dim**-0.5, splits)
    wanted = exact(query, cache, tables, lengths, head_dim**-0.5)
    assert not found[lengths.index(0)].any()
    assert relative(found, wanted) < 3e-3


def test_large_scores_and_float16() -> None:
    torch.manual_seed(0)
    cache, tables = filled([40], 1, 64)
    query = (30 * torch.randn(1, 2, 64)).to(torch.float16)
    assert relative(run(query, cache, tables, [40], 1.0, 2), exact(query, cache, tables, [40], 1.0)) < 3e-3


def test_pages_may_lie_anywhere() -> None:
    torch.manual_seed(1)
    cache, tables = filled([100], 2, 64)
    query = torch.randn(1, 4, 64, dtype=torch.bfloat16)
    order = torch.randperm(cache.keys.shape[0])
    moved = KVCache(*(tensor[order.argsort()] for tensor in cache.tensors))
    count = -(-100 // PAGE_TOKENS)
    moved_tables = tables.clone()
    moved_tables[0, :count] = order[tables[0, :count].long()].to(torch.int32)
    assert torch.equal(run(query, cache, tables, [100], 0.1, 4), run(query, moved, moved_tables, [100], 0.1, 4))


def test_a_poisoned_token_is_seen() -> None:
    cache, tables = filled([20], 1, 64)
    cache.key_scales[tables[0, 0]] = math.nan
    assert run(torch.ones(1, 2, 64, dtype=torch.bfloat16), cache, tables, [20], 0.1, 2).isnan().all()


def test_the_reference_is_the_same() -> None:
    torch.manual_seed(2)
    lengths = [1, 40, 17]
    cache, tables = filled(lengths, 2, 64)
    query, out = torch.randn(3, 4, 64, dtype=torch.bfloat16), torch.empty(3, 4, 64)
    op.reference(out, query, *cache.tensors, tables, torch.tensor(lengths), 0.125, torch.empty(0), torch.empty(0))
    assert relative(out, exact(query, cache, tables, lengths, 0.125)) < 1e-6


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.sampled_from([16, 32, 80]),
    splits=st.integers(1, 5),
)
def test_any_sequences(lengths: list[int], kv_heads: int, group: int, head_dim: int, splits: int) -> None:
    torch.manual_seed(sum(lengths) + splits)
    cache, tables = filled(lengths, kv_heads, head_dim)
    query = torch.randn(len(lengths), kv_heads * group, head_dim, dtype=torch.bfloat16)
    found = run(query, cache, tables, lengths, head_dim**-0.5, splits)
    assert relative(found, exact(query, cache, tables, lengths, head_dim**-0.5)) < 3e-3
