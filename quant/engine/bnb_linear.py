"""vLLM's linear layers with bitsandbytes' 8-bit weights. Imports vLLM's layers: for processes that build a model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.errors import BadCheckpoint, UnsupportedModel
from burrstone.quant.llm_int8 import dequantize, int8_matmul, llm_int8_linear


class BitsAndBytesInt8LinearMethod(vllm.LinearMethodBase):
    """Parameters as the checkpoint has them: weight [N, K] int8, SCB [N] f32, weight_format [1] uint8.

    Split over ranks, N goes with the outputs and K with the inputs; SCB follows N. A rank that holds a part of K rounds
    that part of each token by its own largest value.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        int8_matmul()  # A missing or broken library should stop the start, not the first request.

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        *,
        weight_loader: Callable[..., None],
        **_: Any,
    ) -> None:
        num_rows = sum(output_partition_sizes)
        weight = torch.empty(num_rows, input_size_per_partition, dtype=torch.int8)
        absmax = torch.full((num_rows,), torch.nan, dtype=torch.float32)
        weight_format = torch.zeros(1, dtype=torch.uint8)
        parameters = {
            "weight": vllm.ModelWeightParameter(data=weight, input_dim=1, output_dim=0, weight_loader=weight_loader),
            "SCB": vllm.ChannelQuantScaleParameter(data=absmax, output_dim=0, weight_loader=weight_loader),
            "weight_format": vllm.BasevLLMParameter(data=weight_format, weight_loader=weight_loader),
        }
        for name, parameter in parameters.items():
            layer.register_parameter(name, parameter)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Raises BadCheckpoint for a layer without its scales, UnsupportedModel for a layout that is not row-major."""
        if layer.weight_format.item() != 0:
            raise UnsupportedModel(
                f"{layer.prefix}: weight_format {layer.weight_format.item()}, an order of the weights for one kind of GPU; "
                "only 0, rows, is read: quantize the model again with a bitsandbytes of today"
            )
        if layer.SCB.isnan().any():
            raise BadCheckpoint(
                f"{layer.prefix}: the checkpoint has no SCB, or not for all of it; a module that is not INT8 must be in "
                "quantization_config.llm_int8_skip_modules"
            )
        del layer.weight_format

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:  # [..., K] -> [..., N]
        return llm_int8_linear(x, layer.weight, layer.SCB, self.threshold, bias)

    def dequantize_weight(self, layer: nn.Module) -> Tensor:  # [N, K] f32
        return dequantize(layer.weight, layer.SCB)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """A head that is the embedding, which bitsandbytes does not quantize."""
        del layer.SCB, layer.weight_format
        layer.quant_method = vllm.UnquantizedEmbeddingMethod()
        return layer.quant_method.tie_weights(layer, embed_tokens)


vllm.register_weight_loader_v2_supported_method(BitsAndBytesInt8LinearMethod)
