"""K8: low-rank adapters of many requests in one launch: y += (x @ a.T) @ b.T * scale, each token with its own adapter.

    x: [tokens, k], a: [adapters, rank, k], b: [adapters, n, rank]; sums in float32, the middle rounded to x's type

Tokens come sorted by adapter, sixteen of one adapter to a program, which computes the narrow middle itself and then its part of
n. The middle is computed again for each part of n; it is narrow, and its inputs are in the cache by then. That saves a launch,
the middle's way through memory, and its zeroing.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build
from burrstone.kernels.floats import narrow, operand
from burrstone.kernels.library import register

NAME = "lora"
MAX_RANK = 128
_BLOCK_TOKENS = 16


@triton.jit
def lora_kernel(
    y_ptr,
    x_ptr,
    a_ptr,
    b_ptr,
    order_ptr,
    starts_ptr,
    adapters_ptr,
    y_stride,
    x_stride,
    n,
    k,
    scale,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    segment = tl.program_id(1)
    adapter = tl.load(adapters_ptr + segment).to(tl.int64)
    place = tl.load(starts_ptr + segment) + tl.program_id(2) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    mine = place < tl.load(starts_ptr + segment + 1)
    if (adapter < 0) | (tl.max(mine.to(tl.int32), axis=0) == 0):
        return
    token = tl.load(order_ptr + place, mask=mine, other=0).to(tl.int64)
    rank = tl.arange(0, BLOCK_RANK)
    in_rank = rank < RANK
    depth = tl.arange(0, BLOCK_K)
    middle = tl.zeros((BLOCK_TOKENS, BLOCK_RANK), tl.float32)
    for begin in range(0, k, BLOCK_K):
        inside = depth < k - begin
        x = tl.load(
            x_ptr + token[:, None] * x_stride + begin + depth[None, :], mask=mine[:, None] & inside[None, :], other=0.0
        )
        a_ptrs = a_ptr + (adapter * RANK + rank[None, :]) * k + begin + depth[:, None]
        a = tl.load(a_ptrs, mask=in_rank[None, :] & inside[:, None], other=0.0)
        middle = tl.dot(operand(x), operand(a), middle)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = column < n
    b_ptrs = b_ptr + (adapter * n + column[None, :]) * RANK + rank[:, None]
    b = tl.load(b_ptrs, mask=in_n[None, :] & in_rank[:, None], other=0.0)
    added = tl.dot(operand(narrow(middle, x_ptr.dtype.element_ty)), operand(b)) * scale
    y_ptrs = y_ptr + token[:, None] * y_stride + column[None, :]
    here = mine[:, None] & in_n[None, :]
    tl.store(
        y_ptrs, narrow(tl.load(y_ptrs, mask=here, other=0.0).to(tl.float32) + added, y_ptr.dtype.element_ty), mask=here
    )


def lora(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, order: Tensor, starts: Tensor, adapters: Tensor, scale: float
) -> None:
    """Add each token's adapter to y in place.

    y: [tokens, n], x: [tokens, k], rows may be strided; a: [all adapters, rank, k] and b: [all adapters, n, rank], contiguous,
    all of one 16-bit type. order: int32 [tokens], tokens sorted by adapter; starts: int32 [segments + 1], where each
    segment of one adapter begins in `order`; adapters: int32 [segments], the segment's adapter, or -1 for none.
    """
    _op(y, x, a, b, order, starts, adapters, scale)


def launch(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, order: Tensor, starts: Tensor, adapters: Tensor, scale: float
) -> None:
    tokens, n = y.shape
    if not tokens or not n:
        return
    rank, k = a.shape[1:]
    constants = _constants(rank, n)
    # How many tokens a segment has is on the device; programs that find none return at once.
    grid = (triton.cdiv(n, constants["BLOCK_N"]), len(adapters), triton.cdiv(tokens, _BLOCK_TOKENS))
    strides = (y.stride(0), x.stride(0))
    lora_kernel[grid](
        y, x, a, b, order, starts, adapters, *strides, n, k, scale, **constants, num_warps=4, num_stages=_num_stages(n)
    )


def reference(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, order: Tensor, starts: Tensor, adapters: Tensor, scale: float
) -> None:
    for segment, adapter in enumerate(adapters.tolist()):
        mine = order[starts[segment] : starts[segment + 1]].long()
        if adapter >= 0 and len(mine):
            middle = (x[mine].float() @ a[adapter].float().T).to(x.dtype)
            y[mine] = (y[mine].float() + middle.float() @ b[adapter].float().T * scale).to(y.dtype)


def builds() -> Iterator[Build]:
    for dtype, rank, n in (("bf16", 16, 6144), ("bf16", 64, 4096), ("fp16", 8, 28672)):
        pointers = {name: f"*{dtype}" for name in ("y_ptr", "x_ptr", "a_ptr", "b_ptr")}
        pointers |= {name: "*i32" for name in ("order_ptr", "starts_ptr", "adapters_ptr")}
        numbers = {name: "i32" for name in ("y_stride", "x_stride", "n", "k")}
        yield Build(
            name=f"{NAME} {dtype} rank {rank} n {n}",
            kernel=lora_kernel,
            types=pointers | numbers | {"scale": "fp32"},
            constants=_constants(rank, n),
            aligned=frozenset({*pointers, *numbers}),
            num_warps=4,
            num_stages=_num_stages(n),
            tensor_cores=True,
        )


def _constants(rank: int, n: int) -> dict[str, int]:
    return {
        "RANK": rank,
        "BLOCK_RANK": max(16, triton.next_power_of_2(rank)),
        "BLOCK_TOKENS": _BLOCK_TOKENS,
        "BLOCK_N": _block_n(n),
        "BLOCK_K": 128,
    }


def _block_n(n: int) -> int:
    """Wider parts compute the middle less often; there must be enough of them for the device."""
    return 256 if n > 8192 else 128


def _num_stages(n: int) -> int:
    """Three where nothing spills with any Triton there is: sm80 with wide parts and 3.6 does."""
    return 2 if _block_n(n) == 256 else 3


def _refused(_y: Tensor, x: Tensor, a: Tensor, b: Tensor, *_: object) -> str | None:
    if a.shape[1] > MAX_RANK:
        return f"a rank of more than {MAX_RANK}"
    if not a.is_contiguous() or not b.is_contiguous():
        return "adapters are not contiguous"
    return None if x.element_size() == 2 else f"inputs are {x.dtype}"


_op = register(
    NAME,
    "(Tensor(a!) y, Tensor x, Tensor a, Tensor b, Tensor order, Tensor starts, Tensor adapters, float scale) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
