"""Each format's tensors are read back as they were written, by us and by those whose format it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BitsAndBytesConfig

from burrstone.quant.errors import BadCheckpoint, UnsupportedModel
from burrstone.quant.formats import BNB, NEURON, SCHEMES, W8A8, W8A16, Format, Scheme, format_of
from burrstone.quant.kv_cache import RoundingCache
from burrstone.quant.linears import BnbLinear, W8A8Linear, W8A16Linear
from burrstone.quant.rounding import QMAX, Granularity, dequantize, quantize, weight_scale

COLUMNS = st.one_of(st.integers(1, 11), st.sampled_from((127, 128, 129, 257)))
SHAPES = st.tuples(st.integers(1, 9), COLUMNS)


def rounded(rows: int, columns: int, scheme: Scheme, granularity: Granularity = "per-channel") -> Any:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 100 + columns))
    # A row of zeros, and one of nothing but the largest magnitude.
    weight[rows // 2] = 0.0
    weight[-1] = 3.0 * weight[-1].sign()
    scale = weight_scale(weight, "absmax", granularity).to(scheme.scale_dtype).float()
    return quantize(weight, scale), scale


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_what_is_written_is_read_back(scheme: Scheme, shape: tuple[int, int]) -> None:
    for granularity in scheme.granularities:
        weight, scale = rounded(*shape, scheme, granularity)
        again, again_scale = scheme.decode(scheme.encode(weight, scale))
        assert torch.equal(again, weight)
        torch.testing.assert_close(again_scale, scale, rtol=2e-7, atol=0)


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_packed_values_are_unpacked_by_compressed_tensors(shape: tuple[int, int]) -> None:
    weight, scale = rounded(*shape, W8A16)
    parts = W8A16.encode(weight, scale)
    theirs = unpack_from_int32(parts["weight_packed"], 8, torch.Size(parts["weight_shape"].tolist()))
    assert torch.equal(theirs, weight)
    assert torch.equal(parts["weight_scale"].float(), scale)


def test_the_first_of_four_values_is_the_lowest_byte_and_the_last_word_is_filled_with_zeros() -> None:
    weight = torch.tensor([[-127, -1, 0, 127, 5], [127, 127, 127, 127, -127], [0, 0, 0, 0, 0]], dtype=torch.int8)
    parts = W8A16.encode(weight, torch.ones(3, 1))
    assert parts["weight_packed"].dtype == torch.int32 and parts["weight_packed"].shape == (3, 2)
    as_bytes = [list(word.to_bytes(4, "little", signed=True)) for word in parts["weight_packed"].flatten().tolist()]
    wanted = [[1, 127, 128, 255], [133, 0, 0, 0], [255] * 4, [1, 0, 0, 0], [128] * 4, [128, 0, 0, 0]]
    assert as_bytes == wanted
    assert parts["weight_shape"].tolist() == [3, 5]


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_their_compressors_read_ours_and_we_read_theirs(shape: tuple[int, int]) -> None:
    for scheme, granularity in ((kind, each) for kind in (W8A8, W8A16) for each in kind.granularities):
        weight, scale = rounded(*shape, scheme, granularity)
        parts = scheme.encode(weight, scale)
        announced = scheme.announce(["lm_head"], granularity)["quantization_config"]
        config = QuantizationConfig.model_validate(announced)
        theirs: Any = BaseCompressor.get_value_from_registry(announced["format"])
        group = config.config_groups["group_0"]
        assert theirs.can_compress(torch.nn.Linear, group)
        assert group.weights.strategy == {"per-channel": "channel", "per-tensor": "tensor"}[granularity]
        assert set(parts) == set(theirs.compression_param_names(group))
        whole = theirs.decompress(parts, group)
        assert torch.equal(whole["weight"].float(), dequantize(weight, scale).to(scheme.scale_dtype).float())
        made = theirs.compress({"weight": dequantize(weight, scale), "weight_scale": parts["weight_scale"]}, group)
        again, again_scale = scheme.decode(made)
        assert torch.equal(again, weight) and torch.equal(again_scale, scale)


def test_scales_have_the_shape_that_engines_read() -> None:
    for scheme, suffix in ((W8A8, "weight_scale"), (NEURON, "scale")):
        assert scheme.encode(*rounded(3, 4, scheme))[suffix].shape == (3, 1)
        assert scheme.encode(*rounded(3, 4, scheme, "per-tensor"))[suffix].shape == (1,)
    assert W8A16.encode(*rounded(3, 4, W8A16))["weight_scale"].dtype == torch.bfloat16
    assert BNB.encode(*rounded(3, 4, BNB))["SCB"].shape == (3,)


@pytest.mark.parametrize("granularity", W8A8.granularities)
def test_int8_values_are_dequantized_by_compressed_tensors(granularity: Granularity) -> None:
    weight, scale = rounded(7, 10, W8A8, granularity)
    parts = W8A8.encode(weight, scale)
    announced = W8A8.announce([], granularity)["quantization_config"]["config_groups"]["group_0"]["weights"]
    theirs = their_dequantize(parts["weight"], parts["weight_scale"], args=QuantizationArgs(**announced))
    torch.testing.assert_close(theirs.float(), dequantize(weight, scale), rtol=0, atol=0)


@pytest.mark.parametrize("scheme", [W8A8, W8A16], ids=lambda scheme: scheme.name)
def test_what_is_announced_is_valid_to_compressed_tensors(scheme: Scheme) -> None:
    read = QuantizationConfig.model_validate(scheme.announce(["lm_head"], "per-channel")["quantization_config"])
    group = read.config_groups["group_0"]
    assert (group.weights.num_bits, group.weights.symmetric, read.ignore) == (8, True, ["lm_head"])
    assert (group.input_activations is None) == (scheme is W8A16)


def test_scb_is_the_magnitude_that_127_stands_for() -> None:
    weight = torch.tensor([[1.0, -4.0], [0.5, 0.25]])
    scale = weight_scale(weight)
    parts = BNB.encode(quantize(weight, scale), scale)
    torch.testing.assert_close(parts["SCB"], torch.tensor([4.0, 0.5]))
    assert parts["weight"].tolist() == [[32, -127], [127, 64]]


def test_bitsandbytes_and_we_mean_the_same_by_scb() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(5, 33, generator=torch.Generator().manual_seed(2)).half()
    theirs, magnitudes, _ = functional.int8_vectorwise_quant(weight)
    ours = BNB.decode({"weight": theirs, "SCB": magnitudes, "weight_format": torch.tensor(0, dtype=torch.uint8)})
    torch.testing.assert_close(dequantize(*ours), functional.int8_vectorwise_dequant(theirs, magnitudes.float()))
    torch.testing.assert_close(ours[1], weight_scale(weight))
    parts = BNB.encode(*rounded(6, 33, BNB))
    back = functional.int8_vectorwise_dequant(parts["weight"], parts["SCB"])
    torch.testing.assert_close(back, dequantize(*rounded(6, 33, BNB)))
    assert parts["weight_format"].dtype == torch.uint8 and int(parts["weight_format"]) == 0


def test_what_is_announced_is_valid_to_transformers() -> None:
    read = BitsAndBytesConfig(**BNB.announce(["lm_head", "mlp.up"], "per-channel")["quantization_config"])
    assert read.load_in_8bit and not read.load_in_4bit
    assert (read.llm_int8_threshold, read.llm_int8_skip_modules) == (6.0, ["lm_head", "mlp.up"])


@pytest.mark.parametrize(("granularity", "told"), [("per-channel", "per_channel"), ("per-tensor", "per_tensor")])
def test_what_is_announced_is_neurons_vocabulary(granularity: Granularity, told: str) -> None:
    read = NEURON.announce(["lm_head"], granularity)["burrstone"]["override_neuron_config"]
    assert (read["quantization_type"], read["modules_to_not_convert"]) == (f"{told}_symmetric", ["lm_head"])


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_the_format_is_known_by_what_is_announced(scheme: Scheme) -> None:
    for granularity in scheme.granularities:
        config = json.loads(json.dumps(scheme.announce(["lm_head"], granularity)))
        assert format_of(config, Path("x")) == Format(scheme, False)


def test_the_kv_cache_is_told_by_our_key() -> None:
    assert format_of({"burrstone": {"kv_cache_dtype": "int8_per_token_head"}}, Path("x")) == Format(None, True)
    assert format_of({}, Path("x")) == Format(None, False)


def group(**changes: Any) -> dict[str, Any]:
    """W8A8's group with other weights or activations."""
    ours: dict[str, Any] = W8A8.announce([], "per-channel")["quantization_config"]["config_groups"]["group_0"]
    return ours | {key: value if value is None else ours[key] | value for key, value in changes.items()}


OURS = group()


@pytest.mark.parametrize(
    "change",
    [
        {"quant_method": "gptq"},
        {"quant_method": "awq"},
        {"quant_method": "fp8"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"format": "float-quantized"},
        {"format": "pack-quantized"},
        {"config_groups": {}},
        {"config_groups": {"a": group(weights={"num_bits": 4, "strategy": "group"})}},
        {"config_groups": {"a": group(weights={"symmetric": False})}},
        {"config_groups": {"a": group(weights={"type": "float"})}},
        {"config_groups": {"a": group(weights={"strategy": "block"})}},
        {"config_groups": {"a": group(input_activations={"dynamic": False})}},
        {"config_groups": {"a": group(input_activations={"strategy": "tensor"})}},
        {"config_groups": {"a": group(input_activations={"symmetric": False})}},
        {"config_groups": {"a": group(input_activations=None)}},
        {"config_groups": {"a": OURS, "b": group(weights={"num_bits": 4})}},
    ],
    ids=str,
)
def test_other_quantizations_are_refused(change: dict[str, Any]) -> None:
    config = W8A8.announce([], "per-channel")
    config["quantization_config"] |= change
    with pytest.raises(UnsupportedModel, match="is quantized as"):
        format_of(config, Path("x"))


@pytest.mark.parametrize(
    ("scheme", "change"),
    [
        (BNB, {"llm_int8_threshold": 0.0}),
        (W8A8, {"transform_config": {"config_groups": {"R1": {}}}}),
        (W8A8, {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}),
        (W8A8, {"config_groups": {"group_0": None}}),
    ],
    ids=lambda value: value.name if isinstance(value, Scheme) else str(value),
)
def test_a_key_that_is_not_honoured_is_refused(scheme: Scheme, change: dict[str, Any]) -> None:
    config = scheme.announce([], "per-channel")
    config["quantization_config"] |= change
    with pytest.raises(UnsupportedModel):
        format_of(config, Path("x"))


@pytest.mark.parametrize(
    ("scheme", "part"),
    [
        *[(W8A8, "weight"), (BNB, "weight"), (NEURON, "weight"), (W8A16, "weight_scale"), (W8A16, "weight_shape")],
        *[(W8A8, "weight_scale"), (NEURON, "scale")],
    ],
)
def test_a_module_without_all_its_parts_is_named(scheme: Scheme, part: str) -> None:
    tensors = {f"mlp.up.{suffix}": tensor for suffix, tensor in scheme.encode(*rounded(3, 4, scheme)).items()}
    del tensors[f"mlp.up.{part}"]
    with pytest.raises(BadCheckpoint, match=r"mlp\.up has no tensor"):
        Format(scheme, False).decode(tensors)


@pytest.mark.parametrize(
    ("scheme", "kind"), [(W8A8, W8A8Linear), (W8A16, W8A16Linear), (BNB, BnbLinear), (NEURON, W8A16Linear)]
)
def test_modules_are_told_apart_and_keep_their_biases(scheme: Scheme, kind: Any) -> None:
    weight, scale = rounded(3, 5, scheme)
    parts = scheme.encode(weight, scale) | {"bias": torch.arange(3.0)}
    plain = {"mlp.up_gate.weight": torch.ones(2, 2), "norm.weight": torch.ones(4), "mlp.upper": torch.ones(1)}
    tensors = {f"mlp.up.{suffix}": tensor for suffix, tensor in parts.items()} | plain
    given_names = set(tensors)
    decoded = Format(scheme, False).decode(tensors)
    assert set(tensors) == given_names, "the caller's tensors were taken away"
    assert set(decoded.plain) == set(plain) and set(decoded.linears) == {"mlp.up"}
    linear = decoded.linears["mlp.up"]
    assert type(linear) is kind
    torch.testing.assert_close(linear.weight, dequantize(weight, scale), rtol=2e-7, atol=0)
    assert torch.equal(linear.bias, torch.arange(3.0))


def test_without_a_scheme_every_tensor_is_plain() -> None:
    tensors = {"mlp.up.weight": torch.ones(1), "mlp.up.weight_scale": torch.ones(1)}
    assert Format(None, False).decode(tensors) == ({}, tensors)
    assert Format(None, False).layer_arguments() == {}


def test_an_int8_cache_has_a_scale_for_each_token_and_head() -> None:
    keys = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3)).bfloat16()
    keys[0, 1, 2] *= 1000
    keys[1, 0, 0] = 0.0
    cache = Format(None, True).layer_arguments()["past_key_values"]
    assert isinstance(cache, RoundingCache) and cache.get_seq_length() == 0
    got, values = cache.update(keys, -keys, layer_idx=0)
    assert torch.equal(values, -got) and got.dtype == torch.bfloat16

    def by_hand(head: Tensor) -> Tensor:
        step = head.float().abs().max().clamp(min=1e-8) / QMAX
        return (torch.round(head.float() / step) * step).bfloat16()

    wanted = torch.stack([by_hand(head) for head in keys.reshape(-1, 5)]).reshape(keys.shape)
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=0)
