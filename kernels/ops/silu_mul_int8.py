"""K2: SiLU(gate) * up and per-row INT8 in one pass: what stands before the last linear layer of an MLP.

    y = gate / (1 + exp(-gate)) * up,  in float32, of x = [gate | up]
    out, scales = int8(y)               (see rows)

One program a row, the whole row in registers. Unfused, y is written and read again in between, and that costs a launch.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build, row_warps
from burrstone.kernels.library import register
from burrstone.kernels.rows import quantize_rows, quantized, scale_of, top_bits

# 16 warps of 32 threads hold 64 values each; beyond, registers spill.
MAX_INTERMEDIATE = 32768
# Values in a row, type: rows of SmolLM2 135M, Llama 3.1 8B and 70B.
_BUILDS = ((1536, "bf16"), (14336, "bf16"), (14336, "fp16"), (28672, "bf16"))


@triton.jit
def silu_mul_int8_kernel(out_ptr, scales_ptr, x_ptr, x_stride, intermediate, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < intermediate
    gate_ptrs = x_ptr + row * x_stride + columns
    gate = tl.load(gate_ptrs, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + intermediate, mask=inside, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    scale, inverse = scale_of(top_bits(y))
    tl.store(out_ptr + row * intermediate + columns, quantized(y, inverse), mask=inside)
    tl.store(scales_ptr + row, scale)


def silu_mul_int8(x: Tensor, *, out: Tensor | None = None, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(int8 [rows, n], float32 scales [rows]). x: [rows, 2 n] float16, bfloat16 or float32, rows may be strided."""
    rows, n = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, n, dtype=torch.int8, device=x.device) if out is None else out
    scales = torch.empty(rows, dtype=torch.float32, device=x.device) if scales is None else scales
    _op(out, scales, x)
    return out, scales


def launch(out: Tensor, scales: Tensor, x: Tensor) -> None:
    rows, n = out.shape
    if rows and n:
        silu_mul_int8_kernel[(rows,)](
            out, scales, x, x.stride(0), n, BLOCK=triton.next_power_of_2(n), num_warps=row_warps(n)
        )


def reference(out: Tensor, scales: Tensor, x: Tensor) -> None:
    gate, up = x.float().chunk(2, dim=-1)
    rounded, found = quantize_rows(torch.nn.functional.silu(gate) * up)
    out.copy_(rounded)
    scales.copy_(found)


def builds() -> Iterator[Build]:
    for n, dtype in _BUILDS:
        yield Build(
            name=f"silu_mul_int8 {dtype} {n}",
            kernel=silu_mul_int8_kernel,
            types={"out_ptr": "*i8", "scales_ptr": "*fp32", "x_ptr": f"*{dtype}", "x_stride": "i32"}
            | {"intermediate": "i32"},
            constants={"BLOCK": triton.next_power_of_2(n)},
            aligned=frozenset({"out_ptr", "scales_ptr", "x_ptr", "x_stride", "intermediate"}),
            num_warps=row_warps(n),
        )


def _refused(out: Tensor, _scales: Tensor, x: Tensor) -> str | None:
    if out.shape[1] > MAX_INTERMEDIATE:
        return f"rows of more than {MAX_INTERMEDIATE} values"
    return None if x.stride(1) == 1 else "values of a row are not side by side"


_op = register(
    "silu_mul_int8",
    "(Tensor(a!) out, Tensor(b!) scales, Tensor x) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
