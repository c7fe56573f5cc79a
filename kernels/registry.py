"""The kernels there are."""

import functools
from types import ModuleType

from burrstone.kernels.builds import Build
from burrstone.kernels.ops import (
    attention_kv_int8,
    gemm_w8a8_decode,
    gemm_w8a8_prefill,
    gemm_w8a16,
    llm_int8,
    lora,
    rms_norm_int8,
    rope_kv_int8,
    sample,
    silu_mul_int8,
)

KERNELS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        rms_norm_int8,
        silu_mul_int8,
        gemm_w8a8_decode,
        gemm_w8a8_prefill,
        gemm_w8a16,
        attention_kv_int8,
        rope_kv_int8,
        lora,
        llm_int8,
        sample,
    )
}


@functools.cache
def builds() -> tuple[Build, ...]:
    """Every way a kernel is compiled."""
    return tuple(build for module in KERNELS.values() for build in module.builds())
