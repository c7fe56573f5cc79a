"""bitsandbytes' 8-bit checkpoints in vLLM's layers: what is read, how it is split over ranks, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import linear, vocab_parallel_embedding
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.utils import WeightsMapper

from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.engine.bnb import BitsAndBytesConfig
from burrstone.quant.engine.bnb_linear import BitsAndBytesInt8LinearMethod
from burrstone.quant.errors import BadCheckpoint, UnsupportedModel
from burrstone.quant.llm_int8 import dequantize, llm_int8_linear

HEADS, KV_HEADS, HEAD_SIZE, WIDTH = 4, 2, 16, 64
WRITTEN = {
    "quant_method": "bitsandbytes",
    "load_in_8bit": True,
    "load_in_4bit": False,
    "_load_in_8bit": True,
    "_load_in_4bit": False,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": None,
    "llm_int8_threshold": 6.0,
}
Ranks = Callable[[int, int], None]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says which rank of how many this process is to vLLM's layers; no other process is needed to load weights."""

    def be(rank: int, size: int) -> None:
        for module in (linear, vocab_parallel_embedding, __import__("vllm.model_executor.parameter", fromlist=["_"])):
            monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
            monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: size)

    with set_current_vllm_config(VllmConfig()):
        be(0, 1)
        yield be


def quantized(num_rows: int, seed: int) -> dict[str, Tensor]:
    """A module's tensors as transformers writes them."""
    dense = torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.1
    absmax = dense.abs().amax(dim=1)
    weight = torch.round(dense * 127 / absmax[:, None]).to(torch.int8)
    return {"weight": weight, "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def load(layer: Any, tensors: dict[str, Tensor], *shard: int | str) -> None:
    for name, tensor in tensors.items():
        getattr(layer, name).weight_loader(getattr(layer, name), tensor, *shard)


def finished(layer: Any) -> Any:
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def plain(module: dict[str, Tensor]) -> Tensor:
    return dequantize(module["weight"], module["SCB"])


def config(**changes: Any) -> BitsAndBytesConfig:
    made = BitsAndBytesConfig.from_config(WRITTEN | changes)
    made.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    return made


def column(rows: int) -> Any:
    return linear.ColumnParallelLinear(WIDTH, rows, bias=False, quant_config=config(), prefix="model.layers.0.fc1")


def x(num_tokens: int = 5) -> Tensor:
    values = torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(9))
    values[1::2, 7] = 40.0
    return values


def test_a_layer_computes_llm_int8_of_its_tensors(ranks: Ranks) -> None:
    module = quantized(48, 0)
    layer = column(48)
    load(layer, module)
    finished(layer)
    wanted = llm_int8_linear(x(), module["weight"], module["SCB"], 6.0)
    assert torch.equal(layer.quant_method.apply(layer, x()), wanted)
    assert torch.equal(layer.quant_method.dequantize_weight(layer), plain(module))
    assert {name for name, _ in layer.named_parameters()} == {"weight", "SCB"}


def test_weight_format_is_optional(ranks: Ranks) -> None:
    layer = column(48)
    load(layer, {name: tensor for name, tensor in quantized(48, 0).items() if name != "weight_format"})
    finished(layer)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_query_key_and_value_are_split_by_heads(ranks: Ranks, size: int) -> None:
    """With more ranks than key heads, a key head is on several."""
    query, key, value = (quantized(heads * HEAD_SIZE, seed) for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS)))
    for rank in range(size):
        ranks(rank, size)
        layer = linear.QKVParallelLinear(
            WIDTH, HEAD_SIZE, HEADS, KV_HEADS, bias=False, quant_config=config(), prefix="model.layers.0.qkv_proj"
        )
        for shard, module in (("q", query), ("k", key), ("v", value)):
            load(layer, module, shard)
        finished(layer)
        own = [part(plain(query), rank, size)]
        own += [part(plain(each), rank * KV_HEADS // size, KV_HEADS) if size > KV_HEADS else part(plain(each), rank, size)
                for each in (key, value)]  # fmt: skip
        assert torch.equal(layer.quant_method.dequantize_weight(layer), torch.cat(own))


def part(rows: Tensor, rank: int, size: int) -> Tensor:
    return rows.chunk(size)[rank]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_gate_and_up_are_one_layer(ranks: Ranks, size: int, fused: bool) -> None:
    gate, up = quantized(32, 0), quantized(32, 1)
    for rank in range(size):
        ranks(rank, size)
        layer = linear.MergedColumnParallelLinear(
            WIDTH, [32, 32], bias=False, quant_config=config(), prefix="model.layers.0.gate_up_proj"
        )
        if fused:  # On disk already, as in Phi-3.
            both = {name: torch.cat([gate[name], up[name]]) for name in ("weight", "SCB")}
            load(layer, both | {"weight_format": gate["weight_format"]})
        else:
            load(layer, gate, 0)
            load(layer, up, 1)
        finished(layer)
        own = torch.cat([part(plain(gate), rank, size), part(plain(up), rank, size)])
        assert torch.equal(layer.quant_method.dequantize_weight(layer), own)


def test_ranks_that_split_the_inputs_add_up(ranks: Ranks) -> None:
    module = quantized(48, 0)
    total = torch.zeros(5, 48)
    for rank in range(2):
        ranks(rank, 2)
        layer = linear.RowParallelLinear(WIDTH, 48, bias=False, quant_config=config(), prefix="model.layers.0.o_proj")
        load(layer, module)
        finished(layer)
        half = slice(rank * WIDTH // 2, (rank + 1) * WIDTH // 2)
        assert torch.equal(layer.quant_method.dequantize_weight(layer), plain(module)[:, half])
        total += layer.quant_method.apply(layer, x()[:, half])
    exact = x().double() @ plain(module).double().T
    assert ((total - exact).norm() / exact.norm()).item() < 0.01


def test_a_replicated_layer_is_whole_on_every_rank(ranks: Ranks) -> None:
    module = quantized(48, 0)
    ranks(1, 2)
    layer = linear.ReplicatedLinear(WIDTH, 48, bias=False, quant_config=config(), prefix="model.layers.0.down")
    load(layer, module)
    assert torch.equal(finished(layer).quant_method.dequantize_weight(layer), plain(module))


def head(left_alone: list[str] | None) -> Any:
    made = config(llm_int8_skip_modules=left_alone)
    return vllm.ParallelLMHead(100, WIDTH, quant_config=made, prefix="lm_head", params_dtype=torch.float32)


def test_the_head_is_int8_only_where_the_list_leaves_it_out(ranks: Ranks) -> None:
    assert isinstance(head(None).quant_method, vllm.UnquantizedEmbeddingMethod)
    assert isinstance(head(["lm_head"]).quant_method, vllm.UnquantizedEmbeddingMethod)
    module, layer = quantized(100, 0), head([])
    load(layer, module)
    finished(layer)
    assert len(layer.weight) == 128, "padded"
    wanted = llm_int8_linear(x(), module["weight"], module["SCB"], 6.0)
    assert torch.equal(layer.quant_method.apply(layer, x())[:, :100], wanted)


def test_a_head_tied_to_the_embedding_is_the_embedding(ranks: Ranks) -> None:
    embedding = vllm.ParallelLMHead(100, WIDTH, params_dtype=torch.float32)
    layer = head([]).tie_weights(embedding)
    assert layer.weight is embedding.weight and not hasattr(layer, "SCB")
    assert isinstance(layer.quant_method, vllm.UnquantizedEmbeddingMethod)


def test_a_layer_without_scales_is_refused(ranks: Ranks) -> None:
    layer = linear.QKVParallelLinear(
        WIDTH, HEAD_SIZE, HEADS, KV_HEADS, bias=False, quant_config=config(), prefix="model.layers.0.qkv_proj"
    )
    load(layer, quantized(HEADS * HEAD_SIZE, 0), "q")
    with pytest.raises(BadCheckpoint, match=r"model.layers.0.qkv_proj: .*no SCB.*llm_int8_skip_modules"):
        finished(layer)


def test_weights_in_a_gpus_own_order_are_refused(ranks: Ranks) -> None:
    layer = column(48)
    load(layer, quantized(48, 0) | {"weight_format": torch.tensor(2, dtype=torch.uint8)})
    with pytest.raises(UnsupportedModel, match=r"model.layers.0.fc1: weight_format 2.*quantize the model again"):
        finished(layer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"load_in_4bit": True, "load_in_8bit": False}, "4 bits.*vllm-bnb-plugin"),
        ({"load_in_8bit": False}, "neither load_in_8bit nor load_in_4bit"),
        ({"llm_int8_has_fp16_weight": True}, "holds 16-bit weights"),
        ({"llm_int8_threshold": -1.0}, "llm_int8_threshold must be"),
        ({"llm_int8_threshold": float("nan")}, "llm_int8_threshold must be"),
        ({"llm_int8_threshold": "6"}, "llm_int8_threshold must be"),
    ],
)
def test_configurations_that_are_not_read_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        BitsAndBytesConfig.from_config(WRITTEN | changes)


def test_quantizing_while_loading_is_refused() -> None:
    """vLLM makes the configuration without arguments where config.json has none."""
    with pytest.raises(UnsupportedModel, match="weights are not quantized while they load"):
        BitsAndBytesConfig()


def test_other_platforms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        device_name = "tpu"
        is_cpu = is_cuda = staticmethod(lambda: False)

    monkeypatch.setitem(vllm.__dict__, "current_platform", Other())
    with pytest.raises(UnsupportedModel, match="CPUs and NVIDIA GPUs, not tpu"):
        BitsAndBytesConfig.from_config(WRITTEN)


@pytest.mark.parametrize(
    ("entries", "prefix", "left_alone"),
    [
        (None, "model.layers.0.self_attn.o_proj", False),
        (["lm_head"], "model.layers.0.self_attn.o_proj", False),
        (["o_proj"], "model.layers.0.self_attn.o_proj", True),
        (["layers.0.self_attn.o_proj"], "model.layers.0.self_attn.o_proj", True),
        (["self_attn"], "model.layers.0.self_attn.o_proj", False),
        (["model.layers.0"], "model.layers.0.self_attn.o_proj", True),
        (["model.layers.*.o_proj"], "model.layers.3.self_attn.o_proj", True),
        (["q_proj", "k_proj", "v_proj"], "model.layers.0.self_attn.qkv_proj", True),
        (["qkv_proj"], "model.layers.0.self_attn.qkv_proj", True),
        (["gate_proj", "up_proj"], "gate_up_proj", True),
    ],
)
def test_what_is_left_alone_follows_transformers_rule(
    ranks: Ranks, entries: list[str] | None, prefix: str, left_alone: bool
) -> None:
    layer = linear.ReplicatedLinear(8, 8, bias=False)
    method = config(llm_int8_skip_modules=entries).get_quant_method(layer, prefix)
    assert isinstance(method, vllm.UnquantizedLinearMethod if left_alone else BitsAndBytesInt8LinearMethod)


def test_a_fused_layer_that_is_int8_in_part_is_refused(ranks: Ranks) -> None:
    layer = linear.ReplicatedLinear(8, 8, bias=False)
    with pytest.raises(UnsupportedModel, match=r"leaves only model.layers.0.mlp.up_proj in 16 bits"):
        config(llm_int8_skip_modules=["up_proj"]).get_quant_method(layer, "model.layers.0.mlp.gate_up_proj")


def test_experts_are_refused_and_other_modules_are_vllms() -> None:
    experts = vllm.RoutedExperts.__new__(vllm.RoutedExperts)
    with pytest.raises(UnsupportedModel, match=r"model.layers.0.mlp.experts: experts of a mixture"):
        config().get_quant_method(experts, "model.layers.0.mlp.experts")
    assert config(llm_int8_skip_modules=["experts"]).get_quant_method(experts, "model.layers.0.mlp.experts") is None
    assert config().get_quant_method(torch.nn.LayerNorm(4), "model.norm") is None


def test_names_are_renamed_as_the_model_is() -> None:
    made = config(llm_int8_skip_modules=["model.visual", "lm_head"])
    made.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"model.visual": "visual"}))
    made.apply_vllm_mapper(LlamaModel.hf_to_vllm_mapper.get_rename_mapper())
    assert made.left_alone == ["visual", "lm_head"]
