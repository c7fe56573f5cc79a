"""The INT8 cache's memory: a page in one piece, whatever lies between pages."""

import pytest
import torch

from burrstone.kernels.kv_cache import KVCache, page_bytes, read, unlike_pages, write

KV_HEADS, PAGE_TOKENS, HEAD_DIM = 2, 16, 8


def test_a_page_can_be_copied_by_whoever_knows_only_its_bytes() -> None:
    memory = torch.zeros(3, page_bytes(KV_HEADS, PAGE_TOKENS, HEAD_DIM), dtype=torch.int8)
    cache = KVCache.over(memory, KV_HEADS, PAGE_TOKENS, HEAD_DIM)
    x = torch.randn(PAGE_TOKENS, KV_HEADS, HEAD_DIM)
    for plane, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
        write(plane, scales, x, torch.arange(PAGE_TOKENS))
    memory[2] = memory[0]
    for plane, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
        torch.testing.assert_close(read(plane, scales, torch.tensor([2]), PAGE_TOKENS), x, rtol=0.01, atol=0.02)
    assert not memory[1].any()


def test_pages_may_lie_apart() -> None:
    size = page_bytes(KV_HEADS, PAGE_TOKENS, HEAD_DIM)
    memory = torch.full((2, size + 32), 7, dtype=torch.int8)
    cache = KVCache.over(memory[:, :size], KV_HEADS, PAGE_TOKENS, HEAD_DIM)
    for tensor in cache.tensors:
        tensor.zero_()
    assert not memory[:, :size].any() and (memory[:, size:] == 7).all()
    assert unlike_pages(*cache.tensors) is None


def test_what_is_not_aligned_is_refused() -> None:
    memory = torch.zeros(2, page_bytes(KV_HEADS, PAGE_TOKENS, HEAD_DIM) + 8, dtype=torch.int8)
    with pytest.raises(ValueError, match="776 bytes apart, are not aligned to 16 bytes"):
        KVCache.over(memory[:, :-8], KV_HEADS, PAGE_TOKENS, HEAD_DIM)


def test_planes_that_the_kernels_do_not_take() -> None:
    cache = KVCache.empty(2, KV_HEADS, PAGE_TOKENS, HEAD_DIM, torch.device("cpu"))
    apart = torch.zeros_like(cache.values, memory_format=torch.contiguous_format)
    assert unlike_pages(cache.keys, apart, cache.key_scales, cache.value_scales) == (
        "pages of the cache's planes are not equally far apart"
    )
    swapped = cache.keys.transpose(1, 2)
    assert unlike_pages(swapped, cache.values, cache.key_scales, cache.value_scales) == (
        "a page's plane is not in one piece"
    )
