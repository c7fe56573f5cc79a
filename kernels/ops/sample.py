"""K10: temperature, top-k, top-p and the draw of one token a row, without sorting.

    x = (logits - max(logits)) / temperature
    kept = the top_k highest x, and of these the highest whose exp(x) sum up to top_p of theirs; equals at an edge stay together
    out = argmax over kept of x - log(E),  E = -log(1 - u) exponential, u uniform of (seed, position, token)

The argmax is a draw by exp(x) (Gumbel), and u is Philox-4x32-10 with the seed as its key, so no state is kept: the same row with
the same seed and position gives the same token, whatever batch it stands in. Devices differ in the last bits of exp and log,
which decide only between tokens that are as near to each other as that.

Nothing is drawn where temperature is below MIN_TEMPERATURE: the highest logit wins, of equals the first. So it is where a logit is
+inf. A logit of -inf is never drawn. A row with a NaN, or with nothing but -inf, gives NOTHING.

One program a row, which it reads in blocks; after the first time it is in the cache. Edges are searched among the *bits* of
float32, ordered as the values are: three pivots a reading, until one value is left. The first reading already says much: of the
highest in each lane the k-th is not above the k-th of all, and what is far below the highest has no mass.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from burrstone.kernels.builds import Build
from burrstone.kernels.library import register

NAME = "sample"
MIN_TEMPERATURE = 1e-5
NOTHING = -1
# Counts are float32, as masses are; they are exact up to here.
MAX_VOCAB = 2**24
_BLOCK = 4096
_NUM_WARPS = 16
# Tokens, type: Llama 3, Qwen 2.5, and GPT-2, whose rows do not begin at multiples of 16.
_BUILDS = ((128256, "bf16"), (128256, "fp32"), (151936, "fp16"), (50257, "bf16"), (50257, "fp32"))

_MIN_TEMPERATURE = tl.constexpr(MIN_TEMPERATURE)
_NOTHING = tl.constexpr(NOTHING)
_INFINITY_BITS = tl.constexpr(0x7F800000)
# The image of the lowest number there is, just above that of -inf.
_LOWEST = tl.constexpr(-0x7F800000)
_INT_MAX = tl.constexpr(0x7FFFFFFF)
# Of u: the step of 32 bits, below what a series is exact where 1 - u has lost bits, and the least 1 - u.
_STEP = 2.0**-32
_SMALL = 2.0**-6
_LEAST = 2.0**-25
_K_STEP = tl.constexpr(_STEP)
_K_SMALL = tl.constexpr(_SMALL)
_K_LEAST = tl.constexpr(_LEAST)


@triton.jit
def sample_kernel(
    out_ptr,
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    seeds_ptr,
    positions_ptr,
    logits_stride,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    winner = tl.full((BLOCK,), _INT_MAX, tl.int32)
    counts = tl.zeros((BLOCK,), tl.int32)
    wrong = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, vocab, BLOCK):
        tokens = begin + tl.arange(0, BLOCK)
        x = _logits(row_ptr, tokens, vocab)
        wrong |= ((x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) > _INFINITY_BITS).to(tl.int32)
        counts += (x > float("-inf")).to(tl.int32)
        winner = tl.where(x > best, tokens, winner)
        best = tl.where(x > best, x, best)
    top = tl.max(best, axis=0)
    count = tl.sum(counts, axis=0)
    token = tl.min(tl.where(best == top, winner, _INT_MAX), axis=0)
    if (tl.max(wrong, axis=0) > 0) | (count == 0):
        token = _NOTHING
    else:
        temperature = tl.load(temperature_ptr + row)
        if (temperature >= _MIN_TEMPERATURE) & (top < float("inf")):
            inverse = 1.0 / temperature
            low = tl.full((), _LOWEST, tl.int64)
            high = _image(top).to(tl.int64) + 1
            top_k = tl.load(top_k_ptr + row)
            if (top_k > 0) & (top_k < count):
                low = _kth(_image(best), top_k, high)
                low = _edge(row_ptr, vocab, low, high, top_k.to(tl.float32), top, inverse, False, BLOCK)
            top_p = tl.maximum(tl.load(top_p_ptr + row), 0.0)
            if top_p < 1.0:
                # All that is below has less than the mass that may be left out.
                floor = top - temperature * (tl.log(vocab / (1.0 - top_p)) + 1.0)
                wanted = tl.maximum(top_p * _mass(row_ptr, vocab, low, top, inverse, BLOCK), 1e-30)
                low = tl.maximum(low, _image(floor).to(tl.int64))
                low = _edge(row_ptr, vocab, low, high, wanted, top, inverse, True, BLOCK)
            seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
            token = _drawn(row_ptr, vocab, low, top, inverse, seed, position, BLOCK)
    tl.store(out_ptr + row, token.to(tl.int64))


@triton.jit
def _image(x):
    """int32, ordered as float32 x is."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _logits(row_ptr, tokens, vocab):
    """float32; -inf beyond the row's end. Adding zero makes -0 equal to 0 in its bits too."""
    return tl.load(row_ptr + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32) + 0.0


@triton.jit
def _kth(images, k, high):
    """Image of the k-th of a block's values, or _LOWEST where it has not so many. high: above all of them."""
    low = tl.full((), _LOWEST, tl.int64)
    while low + 1 < high:
        middle = low + (high - low) // 2
        enough = tl.sum((images >= middle.to(tl.int32)).to(tl.int32), axis=0) >= k
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    return low


@triton.jit
def _mass(row_ptr, vocab, low, top, inverse, BLOCK: tl.constexpr):
    """The sum of exp(x) of values whose image is `low` or above."""
    edge = low.to(tl.int32)
    masses = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, vocab, BLOCK):
        x = _logits(row_ptr, begin + tl.arange(0, BLOCK), vocab)
        masses += tl.where(_image(x) >= edge, tl.exp((x - top) * inverse), 0.0)
    return tl.sum(masses, axis=0)


@triton.jit
def _edge(row_ptr, vocab, low, high, wanted, top, inverse, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Image of the highest value at or above which there is `wanted`, in values or in mass; it is in [low, high).

    Sums of the same places in the same order never grow with the pivot, roundings included, so the search cannot go astray.
    """
    while low + 1 < high:
        step = (high - low + 3) // 4
        edge = low.to(tl.int32)
        pivot1, pivot2, pivot3 = low + step, low + 2 * step, low + 3 * step
        sums1 = tl.zeros((BLOCK,), tl.float32)
        sums2 = tl.zeros((BLOCK,), tl.float32)
        sums3 = tl.zeros((BLOCK,), tl.float32)
        lowest = tl.full((BLOCK,), _INT_MAX, tl.int32)
        highest = tl.full((BLOCK,), _LOWEST, tl.int32)
        for begin in range(0, vocab, BLOCK):
            x = _logits(row_ptr, begin + tl.arange(0, BLOCK), vocab)
            image = _image(x)
            weight = tl.exp((x - top) * inverse) if BY_MASS else 1.0
            sums1 += tl.where(image >= pivot1.to(tl.int32), weight, 0.0)
            sums2 += tl.where(image >= pivot2.to(tl.int32), weight, 0.0)
            sums3 += tl.where(image >= pivot3.to(tl.int32), weight, 0.0)
            lowest = tl.minimum(lowest, tl.where(image >= edge, image, _INT_MAX))
            highest = tl.maximum(highest, tl.where(image <= (high - 1).to(tl.int32), image, _LOWEST))
        sum1, sum2, sum3 = tl.sum(sums1, axis=0), tl.sum(sums2, axis=0), tl.sum(sums3, axis=0)
        # What is no number is not enough, so that the search ends whatever it finds.
        enough1, enough2, enough3 = sum1 >= wanted, sum2 >= wanted, sum3 >= wanted
        # To values that there are: where only one is left, this ends the search.
        low = tl.maximum(low, tl.min(lowest, axis=0).to(tl.int64))
        high = tl.minimum(high, tl.max(highest, axis=0).to(tl.int64) + 1)
        low = tl.maximum(low, tl.where(enough3, pivot3, tl.where(enough2, pivot2, tl.where(enough1, pivot1, low))))
        high = tl.minimum(high, tl.where(enough1, tl.where(enough2, tl.where(enough3, high, pivot3), pivot2), pivot1))
        if not BY_MASS:
            high = tl.where((sum1 == wanted) | (sum2 == wanted) | (sum3 == wanted), low + 1, high)
    return low


@triton.jit
def _gumbel(seed, position, begin, BLOCK: tl.constexpr):
    """float32 [BLOCK] for the tokens from `begin`, a multiple of 4, on: four of them to a count."""
    count = (begin // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = count * 0
    low, high = zero + (position & 0xFFFFFFFF).to(tl.uint32), zero + (position >> 32).to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, count, low, high, zero)
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), (BLOCK,))
    u = words.to(tl.float32) * _K_STEP + 0.5 * _K_STEP
    # Small ones win, so they must not come in steps.
    series = u * (1.0 + u * (1.0 / 2.0 + u * (1.0 / 3.0 + u * (1.0 / 4.0))))
    return -tl.log(tl.where(u < _K_SMALL, series, -tl.log(tl.maximum(1.0 - u, _K_LEAST))))


@triton.jit
def _drawn(row_ptr, vocab, low, top, inverse, seed, position, BLOCK: tl.constexpr):
    """The token of those whose image is `low` or above."""
    edge = low.to(tl.int32)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    winner = tl.full((BLOCK,), _INT_MAX, tl.int32)
    for begin in range(0, vocab, BLOCK):
        tokens = begin + tl.arange(0, BLOCK)
        x = _logits(row_ptr, tokens, vocab)
        kept = _image(x) >= edge
        # Most blocks have none, and noise costs more than all else.
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            score = tl.where(kept, (x - top) * inverse + _gumbel(seed, position, begin, BLOCK), float("-inf"))
            winner = tl.where(score > best, tokens, winner)
            best = tl.maximum(best, score)
    return tl.min(tl.where(best == tl.max(best, axis=0), winner, _INT_MAX), axis=0)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """int64 [rows]: a token of each row, or NOTHING.

    logits: [rows, vocab] float16, bfloat16 or float32, rows may be strided. For each row, contiguous: temperature: float32, below
    MIN_TEMPERATURE for the highest; top_k: int32, 0 or vocab for all; top_p: float32, 1 for all, 0 for the highest
    alone; seeds: int64, of the request; positions: int64, how many tokens the request has drawn before.
    """
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device) if out is None else out
    _op(out, logits, temperature, top_k, top_p, seeds, positions)
    return out


def launch(
    out: Tensor, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, positions: Tensor
) -> None:
    rows, vocab = logits.shape
    if rows:
        each = (temperature, top_k, top_p, seeds, positions)
        sample_kernel[(rows,)](out, logits, *each, logits.stride(0), vocab, BLOCK=_BLOCK, num_warps=_NUM_WARPS)


def reference(
    out: Tensor, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, positions: Tensor
) -> None:
    """Masses in float64: where an edge is as near as float32 tells masses apart, the kernel may keep a value more or less."""
    vocab = logits.shape[1]
    if not vocab:
        out.fill_(NOTHING)
        return
    logits = logits.float()
    top, highest = logits.amax(dim=-1, keepdim=True), logits.argmax(dim=-1)
    x = (logits - top) * (1.0 / temperature)[:, None]
    values, order = logits.sort(dim=-1, descending=True)
    ks = torch.where((top_k > 0) & (top_k < vocab), top_k, vocab)[:, None].long()
    kth = values.gather(1, ks - 1)
    masses = torch.where(values >= kth, x.gather(1, order).double().exp(), 0.0).cumsum(dim=-1)
    enough = masses >= top_p.double()[:, None] * masses[:, -1:]
    last = torch.where(top_p[:, None] < 1, values.gather(1, enough.int().argmax(dim=-1, keepdim=True)), -torch.inf)
    kept = (logits >= kth) & (logits >= last) & (logits > -torch.inf)
    drawn = torch.where(kept, x + _noise(seeds, positions, vocab), -torch.inf).argmax(dim=-1)
    draws = (temperature >= MIN_TEMPERATURE) & (top[:, 0] < torch.inf)
    nothing = logits.isnan().any(dim=-1) | (top[:, 0] == -torch.inf)
    out.copy_(torch.where(nothing, NOTHING, torch.where(draws, drawn, highest)))


def _noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """float32 [rows, vocab]."""
    count = torch.arange(triton.cdiv(vocab, 4), device=seeds.device)[None, :]
    words = torch.stack(_philox(seeds[:, None], count, positions[:, None]), dim=-1).flatten(1)[:, :vocab]
    u = words.float() * _STEP + 0.5 * _STEP
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4))))
    return -torch.where(u < _SMALL, series, -(1 - u).clamp(min=_LEAST).log()).log()


def _philox(seed: Tensor, count: Tensor, position: Tensor) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four words of 32 bits, in int64. A product of two has 64, which int64 holds, if as a negative number."""
    word = 0xFFFFFFFF
    key0, key1 = seed & word, seed >> 32 & word
    c0, c1, c2, c3 = torch.broadcast_tensors(
        count & word, position & word, position >> 32 & word, torch.zeros_like(seed)
    )
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = right >> 32 & word ^ c1 ^ key0, right & word
        c2, c3 = left >> 32 & word ^ c3 ^ key1, left & word
        key0, key1 = key0 + 0x9E3779B9 & word, key1 + 0xBB67AE85 & word
    return c0, c1, c2, c3


def builds() -> Iterator[Build]:
    for vocab, dtype in _BUILDS:
        pointers = {"out_ptr": "*i64", "logits_ptr": f"*{dtype}", "temperature_ptr": "*fp32", "top_k_ptr": "*i32"}
        pointers |= {"top_p_ptr": "*fp32", "seeds_ptr": "*i64", "positions_ptr": "*i64"}
        numbers = {"logits_stride": "i32", "vocab": "i32"}
        yield Build(
            name=f"{NAME} {dtype} {vocab}",
            kernel=sample_kernel,
            types=pointers | numbers,
            constants={"BLOCK": _BLOCK},
            aligned=frozenset(pointers) | (frozenset(numbers) if vocab % 16 == 0 else frozenset()),
            num_warps=_NUM_WARPS,
        )


def _refused(_out: Tensor, logits: Tensor, *each: Tensor) -> str | None:
    if logits.shape[1] > MAX_VOCAB:
        return f"more than {MAX_VOCAB} tokens"
    if not all(values.is_contiguous() for values in each):
        return "values for each row are not side by side"
    return None if logits.stride(1) == 1 else "values of a row are not side by side"


_op = register(
    NAME,
    "(Tensor(a!) out, Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor seeds, Tensor positions) -> ()",
    launch=launch,
    reference=reference,
    refused=_refused,
)
