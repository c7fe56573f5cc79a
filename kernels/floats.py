"""Types of 16 bits, on GPUs and in Triton's interpreter alike.

The interpreter cuts bfloat16 off where a GPU rounds it, and its products and conversions of bfloat16 are of the bits as integers;
there, products are computed in float32, which holds both types.
"""

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def narrow(y, dtype: tl.constexpr):
    """float32 to `dtype`, of 16 bits or float32 itself, to the nearest, ties to even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = y.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        y = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, y, nearest.to(tl.float32, bitcast=True))
    return y.to(dtype)


@triton.jit
def operand(x):
    """x, of 16 bits, as a product's operand."""
    if _INTERPRETED:
        return x.to(tl.float32)
    return x


@triton.jit
def operand_of_int8(q, dtype: tl.constexpr):
    """INT8 as an operand of `dtype`, exactly."""
    if _INTERPRETED:
        return q.to(tl.float32)
    # To bfloat16 it is permutations of bytes; straight to float16 it is a conversion for each value.
    return q.to(tl.bfloat16).to(dtype)
