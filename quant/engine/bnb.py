"""bitsandbytes' 8-bit checkpoints for vLLM: what config.json says, and which layer is read how.

transformers writes, for each linear layer, `weight` int8 [N, K], `SCB` float32 [N] (the magnitude that 127 stands for)
and `weight_format`, and keeps in 16 bits what `llm_int8_skip_modules` names.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.engine.plugin import BITSANDBYTES
from burrstone.quant.errors import UnsupportedModel
from burrstone.quant.linears import OUTLIER_THRESHOLD

_FOUR_BITS = (
    "this checkpoint is quantized to 4 bits by bitsandbytes; burrstone reads its 8-bit format. On a GPU the package "
    "vllm-bnb-plugin reads 4 bits (install it with --no-deps, for it declares a vLLM of its own)"
)
_NO_CHECKPOINT = (
    "quantization is set to bitsandbytes, but the checkpoint's config.json has no quantization_config: weights are not "
    "quantized while they load; write an 8-bit checkpoint first, with `burrstone quantize` or transformers"
)


class BitsAndBytesConfig(vllm.QuantizationConfig):
    """threshold: from which magnitude an activation is an outlier; 0 for none. left_alone: modules that are not INT8.

    `left_alone` None is what transformers does unasked: every linear layer but the language model's head.
    Raises UnsupportedModel without a threshold, which is how vLLM asks for quantization while loading.
    """

    def __init__(self, threshold: float | None = None, left_alone: list[str] | None = None) -> None:
        if threshold is None:
            raise UnsupportedModel(_NO_CHECKPOINT)
        super().__init__()
        self.threshold, self.left_alone = threshold, left_alone

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BitsAndBytesConfig":
        """From config.json's quantization_config. Raises UnsupportedModel for what is not read here."""
        if config.get("load_in_4bit"):
            raise UnsupportedModel(_FOUR_BITS)
        if not config.get("load_in_8bit"):
            raise UnsupportedModel("quantization_config of bitsandbytes sets neither load_in_8bit nor load_in_4bit")
        if config.get("llm_int8_has_fp16_weight"):
            raise UnsupportedModel("llm_int8_has_fp16_weight: the checkpoint holds 16-bit weights, not INT8 ones")
        platform = vllm.current_platform
        if not (platform.is_cpu() or platform.is_cuda()):
            raise UnsupportedModel(
                f"bitsandbytes' 8 bits are computed on CPUs and NVIDIA GPUs, not {platform.device_name}"
            )
        threshold = config.get("llm_int8_threshold", OUTLIER_THRESHOLD)
        if not isinstance(threshold, int | float) or not 0 <= threshold < float("inf"):
            raise UnsupportedModel(f"llm_int8_threshold must be a number from 0 up, got {threshold!r}")
        return cls(float(threshold), config.get("llm_int8_skip_modules"))

    @classmethod
    def get_name(cls) -> str:
        return BITSANDBYTES

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Turing, the first with INT8 tensor cores."""
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename what is left alone to the model's names in vLLM."""
        if self.left_alone is not None:
            self.left_alone = hf_to_vllm_mapper.apply_list(self.left_alone)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """How `layer`, named `prefix`, is read and computed; None: as vLLM does it. Raises UnsupportedModel."""
        from burrstone.quant.engine.bnb_linear import BitsAndBytesInt8LinearMethod

        is_head = isinstance(layer, vllm.ParallelLMHead)
        if is_head and self.left_alone is None:
            return None
        if not (is_head or isinstance(layer, vllm.LinearBase | vllm.RoutedExperts)):
            return None
        if self._is_left_alone(prefix):
            return vllm.UnquantizedLinearMethod() if isinstance(layer, vllm.LinearBase) else None
        if isinstance(layer, vllm.RoutedExperts):
            raise UnsupportedModel(f"{prefix}: experts of a mixture are not read from bitsandbytes' 8-bit checkpoints")
        return BitsAndBytesInt8LinearMethod(self.threshold)

    def _is_left_alone(self, prefix: str) -> bool:
        """Whether a layer, fused by vLLM from several modules perhaps, is not INT8. Raises UnsupportedModel if in part."""
        parent, _, name = prefix.rpartition(".")
        parts = [f"{parent}.{part}".lstrip(".") for part in self.packed_modules_mapping.get(name, [name])]
        named = [part for part in parts if self._named(part)]
        if not named:
            return self._named(prefix)
        if len(named) < len(parts):
            raise UnsupportedModel(
                f"vLLM computes {', '.join(parts)} as one layer, and llm_int8_skip_modules leaves only {', '.join(named)} "
                "in 16 bits; quantize all of them or none"
            )
        return True

    def _named(self, module: str) -> bool:
        """transformers' rule: an entry is the end of the module's name, or a pattern that matches from its start."""
        return any(re.match(entry, module) or module.endswith(entry) for entry in self.left_alone or ())
