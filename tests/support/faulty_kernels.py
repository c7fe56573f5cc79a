"""Kernels that the compile gate must refuse."""

import triton
import triton.language as tl


@triton.jit
def hoarding_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """Holds more values than a thread has registers."""
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + columns)
    total = tl.sum(x, axis=0)
    tl.store(out_ptr + columns, x / total)


@triton.jit
def product_kernel(out_ptr, a_ptr, b_ptr, k, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """A product of BLOCK x BLOCK tiles."""
    rows = tl.arange(0, BLOCK)
    depth = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK, BLOCK), tl.int32)
    for begin in range(0, k, BLOCK_K):
        a = tl.load(a_ptr + rows[:, None] * k + begin + depth[None, :])
        b = tl.load(b_ptr + rows[None, :] * k + begin + depth[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(out_ptr + rows[:, None] * BLOCK + rows[None, :], acc)


@triton.jit
def byte_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """Reads INT8 from where it cannot know that sixteen bytes are aligned."""
    columns = tl.arange(0, BLOCK)
    tl.store(out_ptr + columns, tl.load(x_ptr + columns * 3).to(tl.float32))
