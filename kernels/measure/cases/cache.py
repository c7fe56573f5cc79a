"""The kernels of the INT8 KV cache: K6 and K7."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burrstone.kernels.kv_cache import KVCache
from burrstone.kernels.measure.bars import TooFar, assert_relative, assert_rows, assert_same
from burrstone.kernels.measure.cases.case import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    Arguments,
    Cost,
    Goal,
    Kernel,
    Make,
    Ratios,
    Shape,
)
from burrstone.kernels.measure.peers import Peer, compiled, in_turn, missing, quantized_rows, vllm_op
from burrstone.kernels.ops.attention_kv_int8 import workspace_for

_PAGE_TOKENS = 16
_POSITIONS = 4096
_PLANES = ("keys", "values", "key_scales", "value_scales")
_VLLM_TRITON = "is Triton code of vLLM's Python package, which is not imported here"
_UNIFIED, _FA3 = "vLLM: Triton attention, INT8 cache", "FlashAttention 3, bfloat16"
_ROPE_COMPILED, _ROPE_VLLM = "torch.compile", "vLLM: rotary_embedding, and a compiled write"


def _heads(shape: Shape) -> tuple[int, int, int]:
    """(heads, KV heads, head_dim)."""
    return shape.get("heads", HEADS), shape.get("kv_heads", KV_HEADS), shape.get("head_dim", HEAD_DIM)


def _attention_inputs(make: Make, shape: Shape) -> Arguments:
    """Pages in no order. Where the tokens are no whole pages, sequences are of several lengths."""
    sequences, tokens = shape["sequences"], shape["tokens"]
    heads, kv_heads, head_dim = _heads(shape)
    pages = -(-tokens // _PAGE_TOKENS)
    cache = KVCache.empty(sequences * pages, kv_heads, _PAGE_TOKENS, head_dim, make.device)
    for plane in (cache.keys, cache.values):
        plane.copy_(make.int8(*plane.shape))
    for scales in (cache.key_scales, cache.value_scales):
        scales.copy_(make.uniform(*scales.shape) * 0.02 + 0.01)
    lengths = torch.full((sequences,), tokens, dtype=torch.int32, device=make.device)
    if tokens % _PAGE_TOKENS:
        lengths -= make.below(min(_PAGE_TOKENS, tokens), sequences, dtype=torch.int32)
    query, tables = make.normal(sequences, heads, head_dim), make.order(sequences * pages).to(torch.int32)
    tables = tables.reshape(sequences, pages)
    workspace = workspace_for(query, cache.keys, tables)
    return {
        "out": make.empty(sequences, heads, head_dim),
        "query": query,
        **_planes(cache),
        "tables": tables,
        "lengths": lengths,
        "softmax_scale": head_dim**-0.5,
        "parts": workspace.parts,
        "arrivals": workspace.arrivals,
    }


def _planes(cache: KVCache) -> Arguments:
    return dict(zip(_PLANES, cache.tensors, strict=True))


def _plain(given: Arguments, sequence: int, plane: str, dtype: torch.dtype) -> Tensor:
    """A sequence's keys or values, [tokens, kv_heads, head_dim], padded to whole pages."""
    pages = given["tables"][sequence].long()
    scales = given[f"{plane}_scales"][pages].to(dtype)
    return (given[f"{plane}s"][pages].to(dtype) * scales[..., None]).transpose(1, 2).flatten(0, 1)


def _attention_value(given: Arguments) -> Tensor:
    query = given["query"].double()
    out, group = torch.zeros_like(query), query.shape[1] // given["keys"].shape[1]
    for sequence, length in enumerate(given["lengths"].tolist()):
        keys, values = (_plain(given, sequence, plane, torch.float64)[:length] for plane in ("key", "value"))
        heads = query[sequence].unflatten(0, (-1, group))
        weights = (torch.einsum("hgd,thd->hgt", heads, keys) * given["softmax_scale"]).softmax(dim=-1)
        out[sequence] = torch.einsum("hgt,thd->hgd", weights, values).flatten(0, 1)
    return out


def _sdpa(given: Arguments) -> Callable[[], Any]:
    """Over a bfloat16 cache of whole sequences, as it would be without paging and without INT8."""
    sequences = range(len(given["query"]))
    keys, values = (
        torch.stack([_plain(given, each, plane, torch.float32).bfloat16() for each in sequences])
        .transpose(1, 2)
        .contiguous()
        for plane in ("key", "value")
    )
    places = torch.arange(keys.shape[2], device=keys.device)
    mask = (places[None, :] < given["lengths"][:, None])[:, None, None, :]
    # With a mask it takes a slower way, so not where there is nothing to mask.
    mask = None if mask.all() else mask
    query, scale = given["query"][:, :, None, :], given["softmax_scale"]
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=True).squeeze(2)


def _attention_cost(shape: Shape) -> Cost:
    tokens = shape["sequences"] * shape["tokens"]
    heads, kv_heads, head_dim = _heads(shape)
    ends = 4 * shape["sequences"] * heads * head_dim
    return Cost(num_bytes=2 * tokens * kv_heads * (head_dim + 4) + ends, operations=4 * tokens * heads * head_dim)


def _attention_goal(shape: Shape) -> Goal:
    many: Ratios = {(_FA3,): 1.4} if shape["sequences"] * shape["tokens"] >= 128 * 1024 else {}
    return Goal({(_UNIFIED,): 2.0, **many}, roof=0.7)


ATTENTION_KV_INT8 = Kernel(
    name="attention_kv_int8",
    inputs=_attention_inputs,
    check=lambda given, found: assert_relative(found["out"], _attention_value(given), 3e-3),
    value=_attention_value,
    cost=_attention_cost,
    goal=_attention_goal,
    shapes=tuple({"sequences": s, "tokens": t} for s, t in ((64, 2048), (8, 32768), (16, 2048), (32, 8192))),
    awkward=(
        {"sequences": 1, "tokens": 1},
        {"sequences": 3, "tokens": 700, "heads": 14, "kv_heads": 2, "head_dim": 80},
        {"sequences": 5, "tokens": 1030, "heads": 17, "kv_heads": 1, "head_dim": 64},
    ),
    tiny=({"sequences": 2, "tokens": 40, "heads": 4, "kv_heads": 2, "head_dim": 16},),
    peers=(
        Peer("torch scaled_dot_product_attention, bfloat16", _sdpa),
        missing(_UNIFIED, _VLLM_TRITON),
        missing(_FA3, "its library is not loaded here"),
    ),
)


def _rope_inputs(make: Make, shape: Shape) -> Arguments:
    """Queries, keys and values side by side, as attention's input gives them; every eighth token is stored nowhere."""
    tokens = shape["m"]
    heads, kv_heads, head_dim = _heads(shape)
    qkv = make.normal(tokens, heads + 2 * kv_heads, head_dim)
    query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)
    powers = -torch.arange(0, head_dim, 2, device=make.device) / head_dim
    turns = torch.arange(_POSITIONS, device=make.device)[:, None] * 10000.0 ** powers[None, :]
    pages = -(-tokens // _PAGE_TOKENS) + 1
    slots = make.order(pages * _PAGE_TOKENS)[:tokens]
    slots[7::8] = -1
    cache = KVCache.empty(pages, kv_heads, _PAGE_TOKENS, head_dim, make.device)
    for plane in (cache.keys, cache.values):
        plane.fill_(77)
    for scales in (cache.key_scales, cache.value_scales):
        scales.fill_(float("nan"))
    return {
        "query": query,
        "key": key,
        "value": value,
        "cos_sin": torch.cat((turns.cos(), turns.sin()), dim=-1).bfloat16(),
        "positions": make.below(_POSITIONS, tokens),
        "slots": slots,
        **_planes(cache),
    }


def _rotated(x: Tensor, given: Arguments) -> Tensor:
    """In float64, as complex numbers: another way than the kernel's."""
    half = x.shape[-1] // 2
    angles = given["cos_sin"][given["positions"]].double()
    turn = torch.complex(angles[:, :half], angles[:, half:])[:, None]
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double()) * turn
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def _rope_check(given: Arguments, found: Arguments) -> None:
    eps = torch.finfo(given["query"].dtype).eps
    torch.testing.assert_close(found["query"].double(), _rotated(given["query"], given), rtol=2 * eps, atol=1e-5)
    kept = given["slots"] >= 0
    pages, places = given["slots"][kept] // _PAGE_TOKENS, given["slots"][kept] % _PAGE_TOKENS
    steps = found["key_scales"][pages, :, places].double()[..., None]
    wanted = _rotated(given["key"], given)[kept].to(given["key"].dtype).double()
    off = (found["keys"][pages, :, places].double() * steps - wanted).abs()
    # A key may be rounded to its neighbour in the model's type before it is rounded to INT8.
    if not (off <= (0.5 + 1e-3) * (1 + 254 * eps) * steps + eps * wanted.abs()).all():
        raise TooFar("a key in the cache is not what was rotated")
    head_dim = wanted.shape[-1]
    rounded, scales = found["values"][pages, :, places], found["value_scales"][pages, :, places]
    assert_rows(rounded.reshape(-1, head_dim), scales.flatten(), given["value"][kept].double().reshape(-1, head_dim))
    nowhere = torch.ones(given["keys"].shape[0], _PAGE_TOKENS, dtype=torch.bool, device=kept.device)
    nowhere[pages, places] = False
    for plane in ("keys", "values"):
        assert_same(
            f"what no slot names in the {plane}",
            found[plane].transpose(1, 2)[nowhere],
            given[plane].transpose(1, 2)[nowhere],
        )


def _rope(query: Tensor, key: Tensor, cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos_sin[positions].float()[:, None].chunk(2, dim=-1)

    def turned(x: Tensor) -> Tensor:
        x1, x2 = x.float().chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)

    return turned(query), turned(key)


def _write(keys: Tensor, key_scales: Tensor, key: Tensor, pages: Tensor, places: Tensor) -> None:
    rounded, scales = quantized_rows(key.float())
    keys[pages, :, places] = rounded
    key_scales[pages, :, places] = scales[..., 0]


def _rope_and_write(given: Arguments, query: Tensor, key: Tensor, pages: Tensor, places: Tensor) -> Tensor:
    query, key = _rope(query, key, given["cos_sin"], given["positions"])
    _write(given["keys"], given["key_scales"], key, pages, places)
    _write(given["values"], given["value_scales"], given["value"], pages, places)
    return query


def _own_cache(given: Arguments) -> tuple[Arguments, Tensor, Tensor]:
    """Their own cache, and a page that is nobody's for tokens that are stored nowhere: so no shape depends on them."""
    mine = {name: torch.cat((given[name], given[name][:1])) for name in _PLANES}
    nobodys = (len(mine["keys"]) - 1) * _PAGE_TOKENS
    slots = torch.where(given["slots"] < 0, nobodys, given["slots"])
    return given | mine, slots // _PAGE_TOKENS, slots % _PAGE_TOKENS


def _rope_torch(function: Callable[..., Tensor]) -> Callable[[Arguments], Callable[[], Any]]:
    def prepare(given: Arguments) -> Callable[[], Any]:
        mine, pages, places = _own_cache(given)
        tensors = {name: value for name, value in mine.items() if name not in ("query", "key", "slots")}
        return lambda: function(tensors, mine["query"], mine["key"], pages, places)

    return prepare


def _rope_vllm(given: Arguments) -> Callable[[], Any]:
    mine, pages, places = _own_cache(given)
    query, key = given["query"].flatten(1).clone(), given["key"].flatten(1).clone()
    head_dim = given["query"].shape[2]
    turn = vllm_op(
        "rotary_embedding",
        positions=given["positions"],
        query=query,
        key=key,
        head_size=head_dim,
        cos_sin_cache=given["cos_sin"],
        is_neox=True,
    )
    write = compiled(_write)

    def call() -> Tensor:
        turn()
        write(mine["keys"], mine["key_scales"], key.unflatten(1, (-1, head_dim)), pages, places)
        write(mine["values"], mine["value_scales"], given["value"], pages, places)
        return query

    return in_turn((call,), query.unflatten(1, (-1, head_dim)))


def _rope_cost(shape: Shape) -> Cost:
    heads, kv_heads, head_dim = _heads(shape)
    each = 4 * heads * head_dim + 2 * kv_heads * (3 * head_dim + 4) + 2 * head_dim + 16
    return Cost(num_bytes=shape["m"] * each, operations=shape["m"] * head_dim * (4 * heads + 10 * kv_heads))


ROPE_KV_INT8 = Kernel(
    name="rope_kv_int8",
    inputs=_rope_inputs,
    check=_rope_check,
    value=lambda given: _rotated(given["query"], given),
    cost=_rope_cost,
    goal=lambda _: Goal({(_ROPE_VLLM,): 1.5}),
    shapes=({"m": 64}, {"m": 1}, {"m": 1024}),
    awkward=({"m": 9, "heads": 6, "kv_heads": 2, "head_dim": 80}, {"m": 17, "heads": 3, "kv_heads": 3, "head_dim": 64}),
    tiny=({"m": 9, "heads": 4, "kv_heads": 2, "head_dim": 16},),
    peers=(
        Peer("torch eager", _rope_torch(_rope_and_write)),
        Peer(_ROPE_COMPILED, lambda given: _rope_torch(compiled(_rope_and_write))(given)),
        Peer(_ROPE_VLLM, _rope_vllm),
        missing("vLLM: Triton write of its INT8 cache", _VLLM_TRITON),
    ),
    in_place=frozenset({"query", *_PLANES}),
)
