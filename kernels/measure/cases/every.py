"""The cases of every kernel that there is."""

import difflib
from collections.abc import Sequence

from burrstone.kernels.measure.cases import cache, lora, products, rows, sample
from burrstone.kernels.measure.cases.case import Kernel
from burrstone.kernels.measure.device import Unusable
from burrstone.kernels.registry import KERNELS

_KNOWN = (
    rows.RMS_NORM_INT8,
    rows.SILU_MUL_INT8,
    products.GEMM_W8A8_DECODE,
    products.GEMM_W8A8_PREFILL,
    products.GEMM_W8A16,
    cache.ATTENTION_KV_INT8,
    cache.ROPE_KV_INT8,
    lora.LORA,
    products.LLM_INT8,
    sample.SAMPLE,
)
CASES: dict[str, Kernel] = {kernel.name: kernel for kernel in _KNOWN}


def chosen(only: Sequence[str]) -> tuple[Kernel, ...]:
    """All of them where none is named. Raises Unusable for a name that is none."""
    for name in only:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            told = "has no case in kernels/measure/cases yet" if name in KERNELS else "is no kernel"
            raise Unusable(f"{name} {told}{hint}; there are {', '.join(CASES)}")
    return tuple(kernel for name, kernel in CASES.items() if not only or name in only)
