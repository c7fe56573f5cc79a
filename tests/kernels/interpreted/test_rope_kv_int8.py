"""K7: rotary embedding and the writing of keys and values into the INT8 cache."""

import math

import pytest
import torch
from torch import Tensor

from burrstone.kernels.kv_cache import KVCache
from burrstone.kernels.measure.bars import assert_rows
from burrstone.kernels.ops.rope_kv_int8 import launch, reference

PAGES, PAGE_TOKENS, POSITIONS = 5, 4, 50


def angles(rotary_dim: int) -> Tensor:
    turns = torch.arange(POSITIONS)[:, None] * 10000.0 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)[None, :]
    return torch.cat((turns.cos(), turns.sin()), dim=-1)


def rotated(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    """As complex numbers: another way than the kernel's and the reference's."""
    half = cos_sin.shape[1] // 2
    turn = torch.complex(cos_sin[positions, :half].double(), cos_sin[positions, half:].double())[:, None]
    pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double()) * turn
    return torch.cat((pairs.real, pairs.imag, x[..., 2 * half :].double()), dim=-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim"), [(2, 2, 64, 64), (6, 2, 80, 80), (4, 1, 64, 32), (3, 3, 16, 8)]
)
@pytest.mark.parametrize("run", [launch, reference])
def test_cache_and_queries(
    run: object, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, rotary_dim: int
) -> None:
    torch.manual_seed(heads * head_dim)
    # As the product of attention's input gives them: side by side in one row.
    qkv = torch.randn(7, (heads + 2 * kv_heads) * head_dim).to(dtype)
    query, key, value = (
        part.unflatten(1, (-1, head_dim))
        for part in qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    )
    cos_sin = angles(rotary_dim)
    positions = torch.randint(0, POSITIONS, (7,))
    slots = torch.tensor([13, -1, 0, 19, 7, -1, 4])
    cache = KVCache.empty(PAGES, kv_heads, PAGE_TOKENS, head_dim, qkv.device)
    cache.keys.fill_(77)
    cache.key_scales.fill_(math.nan)
    wanted_query, wanted_key = rotated(query, cos_sin, positions), rotated(key, cos_sin, positions)
    key_before = key.clone()

    assert callable(run)
    run(query, key, value, cos_sin, positions, slots, *cache.tensors)

    assert torch.equal(key, key_before)
    torch.testing.assert_close(query.double(), wanted_query, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            page, place = divmod(slot, PAGE_TOKENS)
            rounded_key = wanted_key[token].float().to(dtype).double()
            near = 1 + 2 * torch.finfo(dtype).eps * 127
            found = cache.keys[page, :, place].double() * cache.key_scales[page, :, place, None].double()
            step = cache.key_scales[page, :, place, None].double()
            assert (
                (found - rounded_key).abs() <= (0.5 + 1e-3) * near * step + torch.finfo(dtype).eps * rounded_key.abs()
            ).all()
            assert_rows(cache.values[page, :, place], cache.value_scales[page, :, place], value[token].double())
    unwritten = sorted(set(range(PAGES * PAGE_TOKENS)) - set(slots.tolist()))
    flat = cache.keys.transpose(1, 2).flatten(0, 1)
    assert (flat[unwritten] == 77).all()


def test_no_tokens() -> None:
    cache = KVCache.empty(PAGES, 1, PAGE_TOKENS, 16, torch.device("cpu"))
    none = torch.empty(0, 1, 16)
    launch(
        none, none, none, angles(16), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), *cache.tensors
    )
    assert not cache.keys.any()


@pytest.mark.parametrize("run", [launch, reference])
def test_what_is_rotated_already_is_only_written(run: object) -> None:
    """No query, and an angle of zero for the first two values: keys come out as they went in."""
    torch.manual_seed(3)
    key, value = torch.randn(3, 2, 32).bfloat16(), torch.randn(3, 2, 32).bfloat16()
    cache = KVCache.empty(PAGES, 2, PAGE_TOKENS, 32, key.device)
    slots, at_rest = torch.tensor([6, -1, 9]), torch.tensor([[1.0, 0.0]]).bfloat16()
    assert callable(run)
    run(key[:, :0], key, value, at_rest, torch.zeros(3, dtype=torch.long), slots, *cache.tensors)
    for token, (page, place) in ((0, (1, 2)), (2, (2, 1))):
        assert_rows(cache.keys[page, :, place], cache.key_scales[page, :, place], key[token].double())
        assert_rows(cache.values[page, :, place], cache.value_scales[page, :, place], value[token].double())
    assert int((cache.key_scales > 0).sum()) == 2 * 2
