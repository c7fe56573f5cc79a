"""Our attention backend as vLLM calls it: what it keeps, what it computes, what it refuses."""

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from burrstone.kernels.ops.attention_kv_int8 import largest_workspace, workspace_for
from burrstone.quant.engine import int8_attention
from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.engine.int8_attention import Int8Attention, Int8AttentionBackend, Int8Metadata, Int8MetadataBuilder

HEADS, KV_HEADS, HEAD_DIM, PAGE = 4, 2, 32, 16
SCALE = HEAD_DIM**-0.5


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    current = SimpleNamespace(model_config=SimpleNamespace(max_model_len=128))
    monkeypatch.setitem(vllm.__dict__, "get_current_vllm_config", lambda: current)


def attention(**changes: Any) -> Int8Attention:
    return Int8Attention(
        **{"num_heads": HEADS, "head_size": HEAD_DIM, "scale": SCALE, "num_kv_heads": KV_HEADS} | changes
    )


def memory(count: int) -> Tensor:
    """As vLLM allocates it for the spec that the backend asked for; what was there before must not matter."""
    return torch.full((count, KV_HEADS, PAGE, 2 * (HEAD_DIM + 4)), -1, dtype=torch.int8)


def step(tables: Tensor, news: list[int], lengths: list[int], *, padding: int = 0) -> Int8Metadata:
    """Sequences of one new token first. lengths: with the new ones."""
    decodes = sum(new == 1 for new in news)
    begins = torch.tensor([0, *news]).cumsum(0).tolist()
    slots = [
        int(tables[number, place // PAGE]) * PAGE + place % PAGE
        for number, (new, length) in enumerate(zip(news, lengths, strict=True))
        for place in range(length - new, length)
    ]
    return Int8Metadata(
        num_actual_tokens=sum(news),
        decodes=decodes,
        tables=tables,
        lengths=torch.tensor(lengths, dtype=torch.int32),
        slots=torch.tensor(slots + [-1] * padding),
        begins=begins[decodes:] if decodes < len(news) else [],
        prompt_lengths=lengths[decodes:],
        positions=torch.zeros(sum(news) + padding, dtype=torch.int64),
        workspace=largest_workspace(torch.empty(len(news), HEADS, HEAD_DIM), KV_HEADS),
    )


def exact(query: Tensor, keys: Tensor, values: Tensor, past: int) -> Tensor:
    """float64 [new, heads, head_dim]: query [new, ...] follows `past` tokens; keys, values [past + new, kv_heads, head_dim]."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for place in range(query.shape[0]):
        seen = past + place + 1
        for head in range(HEADS):
            k, v = (
                keys[:seen, head // (HEADS // KV_HEADS)].double(),
                values[:seen, head // (HEADS // KV_HEADS)].double(),
            )
            out[place, head] = (k @ query[place, head].double() * SCALE).softmax(0) @ v
    return out


def test_prompts_in_chunks_and_then_tokens() -> None:
    """Two sequences: one in two chunks and then token by token, one whole beside it. INT8 leaves a percent or so."""
    torch.manual_seed(0)
    run, kept = attention(), memory(8)
    tables = torch.tensor([[5, 2, 7], [1, 4, 0]], dtype=torch.int32)
    sequences = [
        tuple(torch.randn(45, heads, HEAD_DIM).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS)) for _ in range(2)
    ]

    def feed(rows: list[int], news: list[int], lengths: list[int]) -> list[Tensor]:
        parts = [
            tuple(whole[length - new : length] for whole in sequences[row])
            for row, new, length in zip(rows, news, lengths, strict=True)
        ]
        query, key, value = (
            torch.cat([part[index] for part in parts] + [torch.zeros_like(parts[0][index][:2])]) for index in range(3)
        )
        output = torch.full((query.shape[0], HEADS * HEAD_DIM), torch.nan, dtype=query.dtype)
        run.forward(None, query, key, value, kept, step(tables[rows], news, lengths, padding=2), output)
        return list(output[: sum(news)].unflatten(1, (HEADS, HEAD_DIM)).split(news))

    def near(found: Tensor, row: int, new: int, length: int) -> None:
        query, key, value = sequences[row]
        wanted = exact(query[length - new : length], key[:length], value[:length], length - new)
        assert (found.double() - wanted).norm() / wanted.norm() < 0.02

    near(feed([0], [20], [20])[0], 0, 20, 20)
    first, second = feed([0, 1], [13, 40], [33, 40])
    near(first, 0, 13, 33)
    near(second, 1, 40, 40)
    token, rest = feed([1, 0], [1, 5], [41, 38])
    near(token, 1, 1, 41)
    near(rest, 0, 5, 38)
    for each, row, length in zip(feed([0, 1], [1, 1], [39, 42]), (0, 1), (39, 42), strict=True):
        near(each, row, 1, length)


@pytest.mark.parametrize("rows", [2048, 7])
def test_a_chunk_decides_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The same prompt whole and in pieces: the same keys and values are read, so the same comes out."""
    monkeypatch.setattr(int8_attention, "_PROMPT_ROWS", rows)
    torch.manual_seed(1)
    tables = torch.tensor([[1, 0, 2]], dtype=torch.int32)
    query, key, value = (torch.randn(40, heads, HEAD_DIM).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS))
    found = []
    for cuts in ([40], [17, 16, 7]):
        run, kept, begin = attention(), memory(3), 0
        output = torch.empty(40, HEADS * HEAD_DIM, dtype=query.dtype)
        for new in cuts:
            part = slice(begin, begin + new)
            run.forward(
                None, query[part], key[part], value[part], kept, step(tables, [new], [begin + new]), output[part]
            )
            begin += new
        found.append(output)
    torch.testing.assert_close(found[0], found[1], rtol=0.01, atol=1e-3)


def test_memory_is_measured_without_a_cache() -> None:
    output = torch.ones(3, HEADS * HEAD_DIM)
    assert not attention().forward(None, output, output, output, torch.empty(0), None, output).any()


def test_layers_that_share_a_cache_write_it_once() -> None:
    run, kept = attention(kv_sharing_target_layer_name="another"), memory(1)
    before = kept.clone()
    x = torch.randn(2, HEADS, HEAD_DIM).bfloat16()
    tables = torch.zeros(1, 1, dtype=torch.int32)
    run.forward(None, x, x[:, :KV_HEADS], x[:, :KV_HEADS], kept, step(tables, [2], [2]), torch.empty_like(x))
    assert torch.equal(kept, before)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sliding_window": 4096}, "no sliding windows"),
        ({"alibi_slopes": [1.0], "logits_soft_cap": 30.0}, "no ALiBi and soft caps"),
    ],
)
def test_what_it_does_not_compute_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(NotImplementedError, match=told):
        attention(**changes)


def test_memory_that_vllm_drops_is_not_kept() -> None:
    run, kept = attention(), memory(1)
    x = torch.randn(2, HEADS, HEAD_DIM).bfloat16()
    tables = torch.zeros(1, 1, dtype=torch.int32)
    run.forward(None, x, x[:, :2], x[:, :2], kept, step(tables, [2], [2]), torch.empty_like(x))
    storage = weakref.ref(kept.untyped_storage())
    alive = weakref.ref(kept)
    del kept
    assert alive() is None and run._cache is None and storage() is None


def test_a_cache_in_another_order_is_refused() -> None:
    x = torch.randn(2, HEADS, HEAD_DIM).bfloat16()
    tables = torch.zeros(1, 1, dtype=torch.int32)
    swapped = memory(2).transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(NotImplementedError, match="in one piece"):
        attention().forward(None, x, x[:, :2], x[:, :2], swapped, step(tables, [2], [2]), torch.empty_like(x))


def configuration(**changes: Any) -> list[str]:
    """What vLLM would say of it."""
    asked: dict[str, Any] = {"head_size": 128, "dtype": torch.bfloat16, "kv_cache_dtype": "int8_per_token_head"}
    asked |= {"block_size": 16, "use_mla": False, "has_sink": False, "use_sparse": False, "use_mm_prefix": False}
    asked |= {"use_per_head_quant_scales": False, "device_capability": None, "attn_type": "decoder"}
    reasons: list[str] = Int8AttentionBackend.validate_configuration(**asked | changes)
    return reasons


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"kv_cache_dtype": "auto"}, "kv_cache_dtype not supported"),
        ({"dtype": torch.float32}, "dtype not supported"),
        ({"head_size": 72}, "head_size not supported"),
        ({"head_size": 256}, "head_size not supported"),
        ({"use_kv_connector": True}, "KV connector not supported"),
        ({"block_size": 8}, "block_size not supported"),
        ({"has_sliding_window": True}, "sliding window not supported"),
        ({"has_sink": True}, "attention sinks not supported"),
        ({"use_mla": True}, "MLA not supported"),
        ({"attn_type": "encoder_only"}, "attention type encoder_only not supported"),
        ({"use_batch_invariant": True}, "batch invariance not supported"),
    ],
)
def test_what_vllm_asks_before_an_engine_starts(changes: dict[str, Any], reason: str | None) -> None:
    assert configuration(**changes) == ([] if reason is None else [reason])


def test_a_steps_numbers() -> None:
    """Sequences of one new token are the kernel's; of the others the host must know where they begin and end."""
    config = SimpleNamespace(
        speculative_config=None,
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        scheduler_config=SimpleNamespace(max_num_seqs=300, max_num_batched_tokens=64),
        model_config=SimpleNamespace(get_num_attention_heads=lambda _: 32),
    )
    spec = SimpleNamespace(num_kv_heads=8, head_size=128)
    builder = Int8MetadataBuilder(spec, ["layer"], config, torch.device("cpu"))
    assert builder.reorder_batch_threshold == 1
    starts = torch.tensor([0, 1, 2, 9, 12], dtype=torch.int32)
    lengths = torch.tensor([30, 4, 7, 50], dtype=torch.int32)
    common = SimpleNamespace(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        num_reqs=4,
        num_actual_tokens=12,
        max_query_len=7,
        block_table_tensor=torch.zeros(4, 4, dtype=torch.int32),
        slot_mapping=torch.arange(12),
        is_prefilling=None,
        seq_lens_cpu_upper_bound=None,
    )
    built = builder.build(0, common)
    assert built.positions.shape == (300,) and not built.positions.any()
    for sequences in (1, 7, 64, 300):
        query, tables = torch.empty(sequences, 32, 128), torch.zeros(sequences, 4096, dtype=torch.int32)
        needed = workspace_for(query, torch.empty(1, 8, PAGE, 128), tables)
        assert needed.parts.numel() <= built.workspace.parts.numel()
        assert needed.arrivals.numel() <= built.workspace.arrivals.numel()
    assert (built.decodes, built.begins, built.prompt_lengths) == (2, [2, 9, 12], [7, 50])
    common.query_start_loc = common.query_start_loc_cpu = torch.arange(5, dtype=torch.int32)
    common.max_query_len, common.num_actual_tokens = 1, 4
    built = builder.build(0, common)
    assert (built.decodes, built.begins, built.prompt_lengths) == (4, [], [])


def test_a_page_of_ours_is_as_large_as_vllms_spec_says() -> None:
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode

    spec = FullAttentionSpec(
        block_size=PAGE,
        num_kv_heads=KV_HEADS,
        head_size=HEAD_DIM,
        dtype=torch.int8,
        kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD,
    )
    asked = Int8AttentionBackend.customize_spec(spec)
    assert asked.page_size_bytes == memory(1).nbytes
    assert Int8AttentionBackend.customize_spec(asked) == asked
    assert Int8AttentionBackend.supported_kv_cache_layouts() == (vllm.KVCacheLayout.LBHNC,)
