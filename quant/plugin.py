"""The quantization wing's vllm.general_plugins entry point: formats that vLLM does not read by itself.

vLLM calls `register` in every process it starts, on every platform.
"""

BITSANDBYTES = "bitsandbytes"


def register() -> None:
    """Make vLLM read bitsandbytes' 8-bit checkpoints. Does nothing when called again, or where another plugin does it.

    That other one is vllm-bnb-plugin, which reads 4 bits as well; registered after ours, it takes our place.
    """
    # Imported here, for vLLM loads this module before it knows its own platform.
    from burrstone.quant import vllm_compat as vllm

    if BITSANDBYTES in vllm.QUANTIZATION_METHODS:
        return
    from burrstone.quant.bnb import BitsAndBytesConfig

    vllm.register_quantization_config(BITSANDBYTES)(BitsAndBytesConfig)
