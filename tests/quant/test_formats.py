"""Each format's tensors are read back as they were written, by us and by those whose format it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from hypothesis import given
from hypothesis import strategies as st

from burrstone.quant.errors import BadCheckpoint, UnsupportedModel
from burrstone.quant.formats import BNB, NEURON, SCHEMES, W8A8, W8A16, Format, Scheme, format_of
from burrstone.quant.rounding import Granularity, dequantize, quantize, weight_scale

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 11))


def rounded(rows: int, columns: int, scheme: Scheme, granularity: Granularity = "per-channel") -> Any:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 100 + columns))
    scale = weight_scale(weight, "absmax", granularity).to(scheme.scale_dtype).float()
    return quantize(weight, scale), scale


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
@given(SHAPES)
def test_what_is_written_is_read_back(scheme: Scheme, shape: tuple[int, int]) -> None:
    for granularity in scheme.granularities:
        weight, scale = rounded(*shape, scheme, granularity)
        again, again_scale = scheme.decode(scheme.encode(weight, scale))
        assert torch.equal(again, weight)
        torch.testing.assert_close(again_scale, scale, rtol=2e-7, atol=0)


@given(SHAPES)
def test_packed_values_are_unpacked_by_compressed_tensors(shape: tuple[int, int]) -> None:
    weight, scale = rounded(*shape, W8A16)
    parts = W8A16.encode(weight, scale)
    theirs = unpack_from_int32(parts["weight_packed"], 8, torch.Size(parts["weight_shape"].tolist()))
    assert torch.equal(theirs, weight)
    assert torch.equal(parts["weight_scale"].float(), scale)


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


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_the_format_is_known_by_what_is_announced(scheme: Scheme) -> None:
    for granularity in scheme.granularities:
        config = json.loads(json.dumps(scheme.announce(["lm_head"], granularity)))
        assert format_of(config, Path("x")) == Format(scheme, False)


def test_the_kv_cache_is_told_by_our_key() -> None:
    assert format_of({"burrstone": {"kv_cache_dtype": "int8_per_token_head"}}, Path("x")) == Format(None, True)
    assert format_of({}, Path("x")) == Format(None, False)


@pytest.mark.parametrize(
    "change",
    [
        {"quant_method": "gptq"},
        {"format": "float-quantized"},
        {"config_groups": {}},
        {
            "config_groups": {
                "group_0": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}}
            }
        },
    ],
    ids=str,
)
def test_other_quantizations_are_refused(change: dict[str, Any]) -> None:
    config = W8A8.announce([], "per-channel")
    config["quantization_config"] |= change
    with pytest.raises(UnsupportedModel, match="is quantized as"):
        format_of(config, Path("x"))


@pytest.mark.parametrize(
    ("scheme", "part"), [(W8A8, "weight"), (BNB, "weight"), (NEURON, "weight"), (W8A16, "weight_scale")]
)
def test_a_module_without_all_its_parts_is_named(scheme: Scheme, part: str) -> None:
    tensors = {f"mlp.up.{suffix}": tensor for suffix, tensor in scheme.encode(*rounded(3, 4, scheme)).items()}
    del tensors[f"mlp.up.{part}"]
    with pytest.raises(BadCheckpoint, match=r"mlp\.up has no tensor"):
        Format(scheme, False).decode(tensors)
