"""K7: rotary embedding of queries and keys, and keys and values into the INT8 cache, in one launch.

    [x1 | x2] -> [x1 cos - x2 sin | x2 cos + x1 sin]   for the first rotary_dim values of each head, in float32
    cache[slot] = int8(head)                             (see rows, kv_cache)

One program for each token and head; the bytes are few, so it is launches that count, and this is one in place of three. Heads
are rotated by halves (Llama, Qwen, Gemma), not by neighbours (GPT-J).
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build
from burrstone.kernels.floats import narrow
from burrstone.kernels.kv_cache import KVCache, unlike_pages, write
from burrstone.kernels.library import register
from burrstone.kernels.rows import quantized, scale_of, top_bits

NAME = "rope_kv_int8"


@triton.jit
def rope_kv_int8_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    cos_sin_ptr,
    positions_ptr,
    slots_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    query_stride,
    key_stride,
    value_stride,
    page_stride,
    scales_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    HALF: tl.constexpr = ROTARY_DIM // 2
    half = tl.arange(0, BLOCK_HALF)
    in_half = half < HALF
    angles_ptr = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * ROTARY_DIM + half
    cos = tl.load(angles_ptr, mask=in_half, other=0.0).to(tl.float32)
    sin = tl.load(angles_ptr + HALF, mask=in_half, other=0.0).to(tl.float32)

    is_query = head < HEADS
    kv_head = tl.maximum(head - HEADS, 0)
    if is_query:
        x_ptr = query_ptr + token * query_stride + head * HEAD_DIM
    else:
        x_ptr = key_ptr + token * key_stride + kv_head * HEAD_DIM
    x1 = tl.load(x_ptr + half, mask=in_half, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + HALF + half, mask=in_half, other=0.0).to(tl.float32)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    if is_query:
        tl.store(x_ptr + half, narrow(y1, query_ptr.dtype.element_ty), mask=in_half)
        tl.store(x_ptr + HALF + half, narrow(y2, query_ptr.dtype.element_ty), mask=in_half)
        return

    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot < 0:
        return
    page = slot // PAGE_TOKENS
    within = kv_head * PAGE_TOKENS + slot % PAGE_TOKENS
    row = page * page_stride + within * HEAD_DIM
    scale_at = page * scales_stride + within
    # Rounded to the type that keys have without a cache of INT8, so that this is the only thing that differs.
    y1 = narrow(y1, key_ptr.dtype.element_ty).to(tl.float32)
    y2 = narrow(y2, key_ptr.dtype.element_ty).to(tl.float32)
    top = tl.maximum(top_bits(y1), top_bits(y2))
    whole = tl.arange(0, BLOCK_HEAD)
    if ROTARY_DIM < HEAD_DIM:
        beyond = (whole >= ROTARY_DIM) & (whole < HEAD_DIM)
        rest = tl.load(x_ptr + whole, mask=beyond, other=0.0).to(tl.float32)
        top = tl.maximum(top, top_bits(rest))
    scale, inverse = scale_of(top)
    key_ptrs = keys_ptr + row + half
    tl.store(key_ptrs, quantized(y1, inverse), mask=in_half)
    tl.store(key_ptrs + HALF, quantized(y2, inverse), mask=in_half)
    if ROTARY_DIM < HEAD_DIM:
        tl.store(keys_ptr + row + whole, quantized(rest, inverse), mask=beyond)
    tl.store(key_scales_ptr + scale_at, scale)

    in_head = whole < HEAD_DIM
    value = tl.load(value_ptr + token * value_stride + kv_head * HEAD_DIM + whole, mask=in_head, other=0.0).to(
        tl.float32
    )
    scale, inverse = scale_of(top_bits(value))
    tl.store(values_ptr + row + whole, quantized(value, inverse), mask=in_head)
    tl.store(value_scales_ptr + scale_at, scale)


def rope_kv_int8(
    query: Tensor, key: Tensor, value: Tensor, cos_sin: Tensor, positions: Tensor, slots: Tensor, cache: KVCache
) -> None:
    """Rotate `query` in place, write key and value into the cache; `key` stays as it was.

    query: [tokens, heads, head_dim]; key, value: [tokens, kv_heads, head_dim], all of one 16-bit or 32-bit type, tokens may be
    strided; cos_sin: [positions, rotary_dim], cosines and then sines; positions, slots: integers [tokens].
    """
    _op(query, key, value, cos_sin, positions, slots, *cache.tensors)


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
) -> None:
    tokens, heads, head_dim = query.shape
    if not tokens:
        return
    kv_heads = key.shape[1]
    rope_kv_int8_kernel[(tokens, heads + kv_heads)](
        query,
        key,
        value,
        cos_sin,
        positions,
        slots,
        keys,
        values,
        key_scales,
        value_scales,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        keys.stride(0),
        key_scales.stride(0),
        **_constants(heads, head_dim, cos_sin.shape[1], keys.shape[2]),
        num_warps=1,
    )


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
) -> None:
    cos, sin = cos_sin[positions].float()[:, None].chunk(2, dim=-1)
    query.copy_(_rotated(query, cos, sin))
    write(keys, key_scales, _rotated(key, cos, sin), slots)
    write(values, value_scales, value, slots)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [tokens, heads, head_dim]; cos, sin: [tokens, 1, rotary_dim / 2]."""
    half = cos.shape[-1]
    x1, x2, rest = x.float().split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1).to(x.dtype)


def builds() -> Iterator[Build]:
    # The last is what only writes: no query, and a rotation of the first two values by nothing.
    for dtype, heads, head_dim, rotary_dim in (
        ("bf16", 32, 128, 128),
        ("bf16", 32, 64, 64),
        ("fp16", 32, 128, 64),
        ("bf16", 0, 128, 2),
    ):
        data = {name: f"*{dtype}" for name in ("query_ptr", "key_ptr", "value_ptr", "cos_sin_ptr")}
        cache = {"keys_ptr": "*i8", "values_ptr": "*i8", "key_scales_ptr": "*fp32", "value_scales_ptr": "*fp32"}
        strides = {
            name: "i32" for name in ("query_stride", "key_stride", "value_stride", "page_stride", "scales_stride")
        }
        pointers = data | cache | {"positions_ptr": "*i64", "slots_ptr": "*i64"}
        yield Build(
            name=f"{NAME} {dtype} {head_dim}/{rotary_dim}{'' if heads else ' no query'}",
            kernel=rope_kv_int8_kernel,
            types=pointers | strides,
            constants=_constants(heads, head_dim, rotary_dim, 16),
            aligned=frozenset({*pointers, *strides}),
            num_warps=1,
        )


def _constants(heads: int, head_dim: int, rotary_dim: int, page_tokens: int) -> dict[str, int]:
    return {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "ROTARY_DIM": rotary_dim,
        "PAGE_TOKENS": page_tokens,
        "BLOCK_HALF": triton.next_power_of_2(rotary_dim // 2),
        "BLOCK_HEAD": triton.next_power_of_2(head_dim),
    }


def _refused(
    query: Tensor, key: Tensor, value: Tensor, _cos_sin: Tensor, _positions: Tensor, _slots: Tensor, *cache: Tensor
) -> str | None:
    for name, x in (("queries", query), ("keys", key), ("values", value)):
        if x.stride(2) != 1 or x.stride(1) != x.shape[2]:
            return f"heads of the {name} are not side by side"
    return unlike_pages(*cache)


_op = register(
    NAME,
    "(Tensor(a!) query, Tensor key, Tensor value, Tensor cos_sin, Tensor positions, Tensor slots, Tensor(b!) keys, "
    "Tensor(c!) values, Tensor(d!) key_scales, Tensor(e!) value_scales) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
