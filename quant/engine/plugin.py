"""The quantization wing's vllm.general_plugins entry point: formats that vLLM does not read by itself, and our INT8 kernels.

vLLM calls `register` in every process it starts, on every platform.
"""

import logging
from typing import Any

BITSANDBYTES = "bitsandbytes"
ATTENTION = "burrstone.quant.engine.int8_attention.Int8AttentionBackend"


def register() -> None:
    """Does nothing when called again. Nothing of it changes what an engine computes that does not ask for it."""
    # Imported here, for vLLM loads this module before it knows its own platform.
    from burrstone.quant.engine import vllm_compat as vllm

    read_bitsandbytes(vllm)
    if vllm.current_platform.is_cuda():
        offer_kernels(vllm)


def read_bitsandbytes(vllm: Any) -> None:
    """Make vLLM read bitsandbytes' 8-bit checkpoints, where no other plugin does it.

    That other one is vllm-bnb-plugin, which reads 4 bits as well; registered after ours, it takes our place.
    """
    if BITSANDBYTES in vllm.QUANTIZATION_METHODS:
        return
    from burrstone.quant.engine.bnb import BitsAndBytesConfig

    vllm.register_quantization_config(BITSANDBYTES)(BitsAndBytesConfig)


def offer_kernels(vllm: Any) -> None:
    """Put our INT8 linear layer first in vLLM's list, where it declines unless it is switched on (see options), and our
    attention under the name CUSTOM, which somebody must ask for."""
    from burrstone.quant.engine.int8_linear import Int8Linear

    be_heard()
    kernels = vllm.POSSIBLE_INT8_KERNELS[vllm.PlatformEnum.CUDA]
    if Int8Linear not in kernels:
        # vLLM's own way to register appends, and the first that can do it is taken.
        kernels.insert(0, Int8Linear)
    vllm.register_backend(vllm.AttentionBackendEnum.CUSTOM, ATTENTION)


def be_heard() -> None:
    """Which kernel runs is told in the log, once each. vLLM's processes show vLLM's own loggers, from when they are set up on,
    so ours goes the same way; where burrstone has set up its own, it stays with that."""
    logging.getLogger("burrstone").parent = logging.getLogger("vllm")
