"""The INT8 checkpoint formats: how a quantized linear module is stored, announced in config.json, read back and computed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from burrstone.quant.errors import BadCheckpoint, UnsupportedModel
from burrstone.quant.kv_cache import INT8_PER_TOKEN_HEAD, RoundingCache
from burrstone.quant.linears import OUTLIER_THRESHOLD, BnbLinear, W8A8Linear, W8A16Linear
from burrstone.quant.rounding import QMAX, Granularity

# Our own key in config.json: the scheme, and what a server should know that other formats have no word for.
OUR_KEY = "burrstone"
HEAD = "lm_head"
_UNSIGNED = 128


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store INT8 linear modules.

    encode: (int8 [N, K], scale float32 [N, 1] or [1, 1]) -> suffix -> tensor. decode: its inverse. `mark` is the suffix
    by which a quantized module is known. announce: (modules left alone, granularity) -> keys of config.json.
    """

    name: str
    linear: type[W8A16Linear]
    mark: str
    encode: Callable[[Tensor, Tensor], dict[str, Tensor]]
    decode: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]
    announce: Callable[[list[str], Granularity], dict[str, Any]]
    scale_dtype: torch.dtype = torch.float32
    granularities: tuple[Granularity, ...] = ("per-channel",)

    @property
    def suffixes(self) -> set[str]:
        """Of all the tensors that a module may have."""
        return {*self.encode(torch.zeros(1, 1, dtype=torch.int8), torch.ones(1, 1)), "bias"}


class Decoded(NamedTuple):
    """Tensors of a part of a model. linears: module name -> module with its weights. plain: everything else, by name."""

    linears: dict[str, nn.Module]
    plain: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Format:
    """What a checkpoint is stored as; `scheme` is None where its linear modules are not quantized."""

    scheme: Scheme | None
    kv_int8: bool

    def decode(self, tensors: dict[str, Tensor]) -> Decoded:
        """Raises BadCheckpoint for a quantized module that lacks a part."""
        if self.scheme is None:
            return Decoded({}, tensors)
        plain, linears = dict(tensors), {}
        for marked in [name for name in tensors if name.endswith(f".{self.scheme.mark}")]:
            module = marked.removesuffix(f".{self.scheme.mark}")
            parts = {name: plain.pop(name) for name in list(plain) if name.startswith(f"{module}.")}
            by_suffix = {name.removeprefix(f"{module}."): tensor for name, tensor in parts.items()}
            if surplus := sorted(set(by_suffix) - self.scheme.suffixes):
                raise BadCheckpoint(f"quantized module {module}: {surplus[0]} is no part of {self.scheme.name}")
            try:
                weight, scale = self.scheme.decode(by_suffix)
            except KeyError as error:
                raise BadCheckpoint(f"quantized module {module} has no tensor {error}") from error
            if weight.dim() != 2 or scale.shape[0] not in (1, len(weight)):
                raise BadCheckpoint(f"quantized module {module}: weight {list(weight.shape)}, {len(scale)} scales")
            linears[module] = self.scheme.linear(weight, scale, by_suffix.get("bias"))
        for name, tensor in plain.items():
            if tensor.dtype == torch.int8:
                raise BadCheckpoint(f"quantized module {name.rpartition('.')[0]} has no tensor '{self.scheme.mark}'")
        return Decoded(linears, plain)

    def layer_arguments(self) -> dict[str, Any]:
        """What a decoder layer is called with beyond what its model gives it."""
        return {"past_key_values": RoundingCache()} if self.kv_int8 else {}


def _encode_beside(suffix: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """INT8 as it is, with its scale beside it: one a row, or one in all."""
    return lambda weight, scale: {"weight": weight, suffix: scale.reshape(1) if scale.numel() == 1 else scale}


def _decode_beside(suffix: str) -> Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]:
    return lambda parts: (parts["weight"], parts[suffix].float().reshape(-1, 1))


def _encode_packed(weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Four values an int32 along K, each plus 128, the first in the lowest byte; K is filled up with -128."""
    filled = nn.functional.pad(weight.to(torch.int32) + _UNSIGNED, (0, -weight.shape[1] % 4))
    lanes = filled.reshape(len(weight), -1, 4)
    packed = lanes[..., 0] | lanes[..., 1] << 8 | lanes[..., 2] << 16 | lanes[..., 3] << 24
    return {
        "weight_packed": packed,
        "weight_scale": scale.to(torch.bfloat16),
        "weight_shape": torch.tensor(weight.shape),
    }


def _decode_packed(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    packed, (_, columns) = parts["weight_packed"], parts["weight_shape"].tolist()
    lanes = torch.stack([(packed >> shift) & 0xFF for shift in (0, 8, 16, 24)], dim=-1)
    unsigned = lanes.reshape(len(packed), -1)[:, :columns]
    return (unsigned - _UNSIGNED).to(torch.int8), parts["weight_scale"].float().reshape(-1, 1)


def _encode_bnb(weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """SCB is the magnitude that 127 stands for; weight_format 0 is row-major."""
    return {"weight": weight, "SCB": scale[:, 0] * QMAX, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def _decode_bnb(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return parts["weight"], parts["SCB"].float().reshape(-1, 1) / QMAX


def _announce_compressed(layout: str, activations: dict[str, Any] | None) -> Callable[..., dict[str, Any]]:
    """compressed-tensors' own vocabulary, as vLLM 0.32 reads it."""

    def announce(left_alone: list[str], granularity: Granularity) -> dict[str, Any]:
        # To vLLM a head is no linear module, and so has to be named.
        targets = ["Linear"] if HEAD in left_alone else ["Linear", f"re:.*{HEAD}"]
        strategy = "channel" if granularity == "per-channel" else "tensor"
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": False}
        group = {
            "targets": targets,
            "weights": weights,
            "input_activations": activations,
            "output_activations": None,
        }
        return {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": layout,
                "quantization_status": "compressed",
                "config_groups": {"group_0": group},
                "ignore": left_alone,
            }
        }

    return announce


def _announce_bnb(left_alone: list[str], granularity: Granularity) -> dict[str, Any]:
    return {
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "load_in_4bit": False,
            "llm_int8_threshold": OUTLIER_THRESHOLD,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": left_alone,
        }
    }


def _announce_neuron(left_alone: list[str], granularity: Granularity) -> dict[str, Any]:
    """Keys of NxD Inference's `override_neuron_config`; the path is the reader's to fill in."""
    return {
        OUR_KEY: {
            "override_neuron_config": {
                "quantized": True,
                "quantization_dtype": "int8",
                "quantization_type": f"{granularity.replace('-', '_')}_symmetric",
                "modules_to_not_convert": left_alone,
            },
            "unverified": "not tried on a Neuron device; save_quantized_state_dict of NxD Inference is the sure way",
        }
    }


_PER_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
W8A8 = Scheme(
    "w8a8-int8",
    W8A8Linear,
    "weight_scale",
    _encode_beside("weight_scale"),
    _decode_beside("weight_scale"),
    _announce_compressed("int-quantized", _PER_TOKEN),
    granularities=("per-channel", "per-tensor"),
)
W8A16 = Scheme(
    "w8a16-int8",
    W8A16Linear,
    "weight_packed",
    _encode_packed,
    _decode_packed,
    _announce_compressed("pack-quantized", None),
    # What the kernels read: rounding afterwards would scale every weight wrong.
    scale_dtype=torch.bfloat16,
)
BNB = Scheme("bnb-int8", BnbLinear, "SCB", _encode_bnb, _decode_bnb, _announce_bnb)
NEURON = Scheme(
    "neuron-int8",
    W8A16Linear,
    "scale",
    _encode_beside("scale"),
    _decode_beside("scale"),
    _announce_neuron,
    granularities=("per-channel", "per-tensor"),
)
SCHEMES = {scheme.name: scheme for scheme in (W8A8, W8A16, BNB, NEURON)}
_NOT_HONOURED = ("transform_config", "kv_cache_scheme", "sparsity_config")
# No change of weights: the server is told to keep keys and values in INT8.
KV_INT8 = "kv-int8"


def format_of(config: dict[str, Any], where: Path) -> Format:
    """What config.json says that the weights are. Raises UnsupportedModel for quantizations that are not ours to read."""
    ours = config.get(OUR_KEY, {})
    if not isinstance(ours, dict):
        raise UnsupportedModel(f"{where}: {OUR_KEY} in config.json is no object, and so nothing of ours")
    kv_int8 = ours.get("kv_cache_dtype") == INT8_PER_TOKEN_HEAD
    quantization = config.get("quantization_config")
    if quantization is None:
        return Format(NEURON if "override_neuron_config" in ours else None, kv_int8)
    if not isinstance(quantization, dict):
        raise UnsupportedModel(f"{where}: quantization_config in config.json is no object")
    method = quantization.get("quant_method")
    if idle := [key for key in _NOT_HONOURED if quantization.get(key)]:
        raise UnsupportedModel(
            f"{where}: {idle[0]} in quantization_config changes what the model computes; not read here"
        )
    if method == "bitsandbytes" and quantization.get("load_in_8bit"):
        threshold = quantization.get("llm_int8_threshold", OUTLIER_THRESHOLD)
        if threshold != OUTLIER_THRESHOLD:
            raise UnsupportedModel(f"{where}: llm_int8_threshold {threshold!r}; only {OUTLIER_THRESHOLD} is read here")
        return Format(BNB, kv_int8)
    if method == "compressed-tensors":
        groups = list((quantization.get("config_groups") or {}).values())
        for scheme in (W8A8, W8A16):
            layout = scheme.announce([], "per-channel")["quantization_config"]
            known = _key_facts(layout["config_groups"]["group_0"])
            if (
                quantization.get("format") == layout["format"]
                and groups
                and all(isinstance(group, dict) and _key_facts(group) == known for group in groups)
            ):
                return Format(scheme, kv_int8)
    raise UnsupportedModel(
        f"{where} is quantized as {method!r} ({quantization.get('format', 'no format named')}); "
        f"read here are unquantized models and what `burrstone quantize` writes: {', '.join(SCHEMES)}"
    )


def _key_facts(group: dict[str, Any]) -> tuple[Any, ...]:
    """Of a compressed-tensors group, what decides how a module computes."""
    weights, activations = group.get("weights") or {}, group.get("input_activations") or {}
    keys = ("num_bits", "type", "symmetric")
    grouped = weights.get("strategy") not in ("channel", "tensor")
    return (
        *(weights.get(key) for key in keys),
        grouped,
        *(activations.get(key) for key in (*keys, "strategy", "dynamic")),
    )
