"""K6: attention of one new token over a paged INT8 KV cache.

    s_t = (q . k_t) * key_scale_t * softmax_scale;   out = sum_t softmax(s)_t * value_scale_t * v_t

Reading the cache is all the time there is, so the cache is read once, in sixteen-byte pieces, for all the query heads that
share a KV head; scales stand outside of both products, where they are one number a token. Long sequences are split among
programs; each leaves (largest score, sum, weighted values), and the last one to arrive puts them together in order.
"""

import itertools
import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build
from burrstone.kernels.floats import narrow, operand, operand_of_int8
from burrstone.kernels.kv_cache import KVCache, read, unlike_pages
from burrstone.kernels.library import arch_of, register
from burrstone.kernels.select import ARCHITECTURES, MULTIPROCESSORS
from burrstone.kernels.tall import Workspace, arrives_last

NAME = "attention_kv_int8"
# Tensor cores take 16 rows: heads that share a KV head are packed into them.
GROUP_ROWS = 16
_MAX_SPLITS = 32
# A split that has fewer to read pays more for meeting the others than it saves.
_LEAST_TOKENS = 256
_LOG2_E = math.log2(math.e)


@triton.jit
def attention_kv_int8_kernel(
    out_ptr,
    query_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    tables_ptr,
    lengths_ptr,
    parts_ptr,
    arrivals_ptr,
    query_stride,
    table_stride,
    page_stride,
    scales_stride,
    scale_log2,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths_ptr + sequence)
    steps = tl.cdiv(length, BLOCK_TOKENS)

    group = tl.arange(0, GROUP_BLOCK)
    dim = tl.arange(0, BLOCK_DIM)
    in_head = (group[:, None] < GROUP) & (dim[None, :] < HEAD_DIM)
    head = (kv_head * GROUP + group)[:, None] * HEAD_DIM + dim[None, :]
    query = tl.load(query_ptr + sequence * query_stride + head, mask=in_head, other=0.0)

    top = tl.full((GROUP_BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    acc = tl.zeros((GROUP_BLOCK, BLOCK_DIM), tl.float32)
    for step in range(steps * split // SPLITS, steps * (split + 1) // SPLITS):
        token = step * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        inside = token < length
        page = tl.load(tables_ptr + sequence * table_stride + token // PAGE_TOKENS, mask=inside, other=0).to(tl.int64)
        within = kv_head * PAGE_TOKENS + token % PAGE_TOKENS
        row = page * page_stride + within * HEAD_DIM
        scale_at = page * scales_stride + within
        key = tl.load(keys_ptr + row[None, :] + dim[:, None], mask=inside[None, :] & (dim < HEAD_DIM)[:, None], other=0)
        scores = tl.dot(operand(query), operand_of_int8(key, query.dtype))
        scores *= (tl.load(key_scales_ptr + scale_at, mask=inside, other=0.0) * scale_log2)[None, :]
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        kept = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        total = total * kept + tl.sum(weights, axis=1)
        weights *= tl.load(value_scales_ptr + scale_at, mask=inside, other=0.0)[None, :]
        value = tl.load(
            values_ptr + row[:, None] + dim[None, :],
            mask=inside[:, None] & (dim < HEAD_DIM)[None, :],
            other=0,
        )
        acc = tl.dot(operand(narrow(weights, query.dtype)), operand_of_int8(value, query.dtype), acc * kept[:, None])
        top = new_top

    last = split >= 0
    if SPLITS > 1:
        PART: tl.constexpr = GROUP_BLOCK * (BLOCK_DIM + 2)
        tile = tl.program_id(0) * KV_HEADS + kv_head
        part_ptr = parts_ptr + tile.to(tl.int64) * (SPLITS * PART)
        place = group[:, None] * BLOCK_DIM + dim[None, :]
        TOTALS: tl.constexpr = GROUP_BLOCK * BLOCK_DIM
        mine_ptr = part_ptr + split * PART
        tl.store(mine_ptr + place, acc)
        tl.store(mine_ptr + TOTALS + group, total)
        tl.store(mine_ptr + TOTALS + GROUP_BLOCK + group, top)
        last = arrives_last(arrivals_ptr + tile, SPLITS)
        if last:
            top = tl.full((GROUP_BLOCK,), float("-inf"), tl.float32)
            for part in range(SPLITS):
                top = tl.maximum(
                    top, tl.load(part_ptr + part * PART + TOTALS + GROUP_BLOCK + group, cache_modifier=".cg")
                )
            total = tl.zeros((GROUP_BLOCK,), tl.float32)
            acc = tl.zeros((GROUP_BLOCK, BLOCK_DIM), tl.float32)
            for part in range(SPLITS):
                other_ptr = part_ptr + part * PART
                other_top = tl.load(other_ptr + TOTALS + GROUP_BLOCK + group, cache_modifier=".cg")
                # A split without tokens has no largest score, and neither has an empty sequence.
                kept = tl.where(other_top == float("-inf"), 0.0, tl.exp2(other_top - top))
                total += kept * tl.load(other_ptr + TOTALS + group, cache_modifier=".cg")
                acc += kept[:, None] * tl.load(other_ptr + place, cache_modifier=".cg")
    if last:
        y = acc / tl.where(length > 0, total, 1.0)[:, None]
        out_ptrs = out_ptr + sequence * (KV_HEADS * GROUP * HEAD_DIM) + head
        tl.store(out_ptrs, narrow(y, out_ptr.dtype.element_ty), mask=in_head)


def attention_kv_int8(
    query: Tensor,
    cache: KVCache,
    tables: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    *,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """[sequences, heads, head_dim] of the query's type.

    query: bfloat16 or float16 [sequences, heads, head_dim], sequences may be strided; tables: int32 [sequences, pages], each
    sequence's pages in order; lengths: int32 [sequences], its tokens in the cache; a sequence of none gets zeros. workspace:
    one that is kept saves a launch that clears it.
    """
    sequences, heads, head_dim = query.shape
    out = torch.empty(sequences, heads, head_dim, dtype=query.dtype, device=query.device) if out is None else out
    workspace = workspace_for(query, cache.keys, tables) if workspace is None else workspace
    _op(out, query, *cache.tensors, tables, lengths, softmax_scale, workspace.parts, workspace.arrivals)
    return out


def workspace_for(query: Tensor, keys: Tensor, tables: Tensor) -> Workspace:
    """Enough for one launch."""
    return _workspace(_parts(query, keys.shape[1], _splits(query, keys, tables)), query, keys.shape[1])


def largest_workspace(query: Tensor, kv_heads: int) -> Workspace:
    """Enough for any launch of at most the query's sequences, however long they are."""
    counts = range(1, len(query) + 1)
    each = (query[:count] for count in counts)
    most = max(_parts(few, kv_heads, _splits_of(len(few) * kv_heads, _MAX_SPLITS, query.device)) for few in each)
    return _workspace(most, query, kv_heads)


def _workspace(parts: int, query: Tensor, kv_heads: int) -> Workspace:
    return Workspace(
        torch.empty(parts, dtype=torch.float32, device=query.device),
        torch.zeros(len(query) * kv_heads, dtype=torch.int32, device=query.device),
    )


def _parts(query: Tensor, kv_heads: int, splits: int) -> int:
    """float32 values that programs leave for one another."""
    sequences, heads, head_dim = query.shape
    part = _group_rows(heads // kv_heads) * (triton.next_power_of_2(head_dim) + 2)
    return sequences * kv_heads * splits * part if splits > 1 else 0


def launch(
    out: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
    tables: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    parts: Tensor,
    arrivals: Tensor,
    splits: int | None = None,
) -> None:
    sequences, heads, head_dim = query.shape
    if not sequences:
        return
    kv_heads, page_tokens = keys.shape[1:3]
    splits = _splits(query, keys, tables) if splits is None else splits
    arch = arch_of(query.device)
    attention_kv_int8_kernel[(sequences, kv_heads, splits)](
        out,
        query,
        keys,
        values,
        key_scales,
        value_scales,
        tables,
        lengths,
        parts,
        arrivals,
        query.stride(0),
        tables.stride(0),
        keys.stride(0),
        key_scales.stride(0),
        softmax_scale * _LOG2_E,
        **_constants(arch, heads, kv_heads, head_dim, page_tokens, splits),
        num_warps=4,
        num_stages=_num_stages(arch),
    )


def reference(
    out: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
    tables: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    _parts: Tensor,
    _arrivals: Tensor,
) -> None:
    group = query.shape[1] // keys.shape[1]
    for sequence, length in enumerate(lengths.tolist()):
        pages = tables[sequence, : -(-length // keys.shape[2])].long()
        k = read(keys, key_scales, pages, length).repeat_interleave(group, dim=1)
        v = read(values, value_scales, pages, length).repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,thd->ht", query[sequence].float(), k) * softmax_scale
        out[sequence] = torch.einsum("ht,thd->hd", scores.softmax(dim=-1), v)


def builds() -> Iterator[Build]:
    shapes = (("bf16", 32, 128, 8), ("bf16", 32, 128, 1), ("fp16", 64, 64, 8))
    for arch, (dtype, heads, head_dim, splits) in itertools.product(ARCHITECTURES, shapes):
        pointers = {"out_ptr": f"*{dtype}", "query_ptr": f"*{dtype}", "keys_ptr": "*i8", "values_ptr": "*i8"}
        pointers |= {
            "key_scales_ptr": "*fp32",
            "value_scales_ptr": "*fp32",
            "tables_ptr": "*i32",
            "lengths_ptr": "*i32",
        }
        pointers |= {"parts_ptr": "*fp32", "arrivals_ptr": "*i32"}
        strides = {name: "i32" for name in ("query_stride", "table_stride", "page_stride", "scales_stride")}
        yield Build(
            name=f"{NAME} {dtype} {heads}/8x{head_dim} splits {splits}",
            kernel=attention_kv_int8_kernel,
            types=pointers | strides | {"scale_log2": "fp32"},
            constants=_constants(arch, heads, 8, head_dim, 16, splits),
            aligned=frozenset({*pointers, *strides}),
            num_warps=4,
            num_stages=_num_stages(arch),
            architectures=(arch,),
            tensor_cores=True,
        )


def _constants(arch: str, heads: int, kv_heads: int, head_dim: int, page_tokens: int, splits: int) -> dict[str, int]:
    return {
        "KV_HEADS": kv_heads,
        "GROUP": heads // kv_heads,
        "GROUP_BLOCK": _group_rows(heads // kv_heads),
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": triton.next_power_of_2(head_dim),
        "PAGE_TOKENS": page_tokens,
        "BLOCK_TOKENS": _block_tokens(arch),
        "SPLITS": splits,
    }


def _block_tokens(arch: str) -> int:
    """Registers of gfx942 hold a half of what the others' do."""
    return 32 if arch == "gfx942" else 64


def _num_stages(arch: str) -> int:
    return 2 if arch == "gfx942" else 3


def _group_rows(group: int) -> int:
    return max(GROUP_ROWS, triton.next_power_of_2(group))


def _splits(query: Tensor, keys: Tensor, tables: Tensor) -> int:
    """By what the tables could hold: lengths are on the device, and a graph's launch cannot change with them."""
    most = min(_MAX_SPLITS, tables.shape[1] * keys.shape[2] // _LEAST_TOKENS)
    return _splits_of(query.shape[0] * keys.shape[1], most, query.device)


def _splits_of(programs: int, most: int, device: torch.device) -> int:
    wanted = 2 * MULTIPROCESSORS.get(arch_of(device), 108)
    splits = 1
    while splits * 2 <= most and programs * splits < wanted:
        splits *= 2
    return splits


def _refused(
    out: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
    tables: Tensor,
    _lengths: Tensor,
    _softmax_scale: float,
    parts: Tensor,
    arrivals: Tensor,
) -> str | None:
    if query.shape[1] % keys.shape[1]:
        return "heads are no multiple of KV heads"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"queries are {query.dtype}"
    side_by_side = query.stride(2) == 1 and query.stride(1) == query.shape[2]
    if not side_by_side or not out.is_contiguous():
        return "heads are not side by side"
    kv_heads = keys.shape[1]
    if (
        parts.numel() < _parts(query, kv_heads, _splits(query, keys, tables))
        or arrivals.numel() < len(query) * kv_heads
    ):
        return "the workspace is too small"
    return unlike_pages(keys, values, key_scales, value_scales)


_op = register(
    NAME,
    "(Tensor(a!) out, Tensor query, Tensor keys, Tensor values, Tensor key_scales, Tensor value_scales, Tensor tables, "
    "Tensor lengths, float softmax_scale, Tensor(b!) parts, Tensor(c!) arrivals) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
