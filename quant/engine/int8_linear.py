"""The INT8 linear layer that stands in front of CUTLASS's: weights of 8 bits, one scale a row; inputs rounded by the token.

vLLM asks it for every W8A8 layer. It declines where nothing is switched on, and where inputs are not rounded by the token.
"""

from typing import Any

import torch
from torch import Tensor

from burrstone.kernels import library
from burrstone.quant.engine import int8_ops
from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.engine.int8_fusion import FuseInt8Rows
from burrstone.quant.engine.options import current


class Int8Linear(vllm.CutlassInt8ScaledMMLinearKernel):
    """Weights lie as CUTLASS wants them, [n, k] seen as [k, n], so that both can read them."""

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        options = current()
        if c.is_static_input_scheme or not c.input_symmetric:
            return False, "takes inputs that are rounded by the token, without a zero point"
        arch = library.arch_of(torch.device(vllm.current_platform.device_type))
        measured = options.int8_linear == "auto" and int8_ops.wins_somewhere(arch)
        if not (options.int8_fusion or measured or options.int8_linear == "on"):
            reason = "is off" if options.int8_linear == "off" else f"no measurement says that it is faster on {arch}"
            return False, reason
        return super().can_implement(c)

    def __init__(self, c: Any, layer_param_names: Any) -> None:
        super().__init__(c, layer_param_names)
        options = current()
        self.linear = options.int8_linear
        if options.int8_fusion:
            FuseInt8Rows.join(vllm.get_current_vllm_config())

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        super().process_weights_after_loading(layer)
        weight, weight_scales, *_ = self._get_layer_params(layer)
        k, n = weight.shape
        name = self.layer_param_names[1]
        one_each = weight_scales.reshape(-1).expand(n).contiguous()
        vllm.replace_parameter(layer, name, torch.nn.Parameter(one_each, requires_grad=False))
        int8_ops.prepare(weight.device, n, k)

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight, weight_scales, *_ = self._get_layer_params(layer)
        rows, scales = int8_ops.int8_rows(x.reshape(-1, x.shape[-1]))
        y = int8_ops.int8_product(rows, scales, weight.t(), weight_scales, bias, x.dtype, self.linear)
        return y.reshape(*x.shape[:-1], weight.shape[1])
