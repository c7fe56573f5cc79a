"""K10: temperature, top-k, top-p and the draw."""

import functools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from burrstone.kernels.ops.sample import NOTHING, launch, reference

INF = math.inf
# Equals at many edges; the two zeros are equals.
ROW = (1.0, 2.0, -1.0, 1.0, 0.0, -INF, -2.5, -0.0, 0.5)
# Of a chi-square of 8 degrees of freedom; one in a thousand is above.
CHI_SQUARE = 26.1


def arguments(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    seeds: int | Tensor = 0,
    positions: int | Tensor = 0,
) -> tuple[Tensor, ...]:
    """Those of the op but the output. A number is of every row."""
    float32, int32, int64 = torch.float32, torch.int32, torch.int64
    each = ((temperature, float32), (top_k, int32), (top_p, float32), (seeds, int64), (positions, int64))
    return logits, *(torch.as_tensor(value, dtype=dtype).expand(len(logits)).contiguous() for value, dtype in each)


def run(logits: Tensor, **options: float | Tensor) -> list[int]:
    """What was in the output before must not matter."""
    out = torch.full(logits.shape[:1], -77)
    launch(out, *arguments(logits, **options))
    tokens: list[int] = out.tolist()
    return tokens


def referred(logits: Tensor, **options: float | Tensor) -> list[int]:
    out = torch.full(logits.shape[:1], -77)
    reference(out, *arguments(logits, **options))
    tokens: list[int] = out.tolist()
    return tokens


def support(row: list[float], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """Token -> probability."""
    ranked = sorted((x for x in row if x > -INF), reverse=True)
    if 0 < top_k < len(ranked):
        ranked = [x for x in ranked if x >= ranked[top_k - 1]]
    weights = [math.exp((x - ranked[0]) / temperature) for x in ranked]
    number = len(ranked)
    if top_p < 1:
        number = next(n for n in range(1, number + 1) if math.fsum(weights[:n]) >= top_p * math.fsum(weights))
    kept = {token: x for token, x in enumerate(row) if x >= ranked[number - 1]}
    total = math.fsum(math.exp((x - ranked[0]) / temperature) for x in kept.values())
    return {token: math.exp((x - ranked[0]) / temperature) / total for token, x in kept.items()}


@functools.cache
def winning_seeds() -> list[int]:
    """For each token of ROW, one by which it wins over all others."""
    winners = referred(torch.tensor(ROW).expand(8000, -1), temperature=1.5, seeds=torch.arange(8000), positions=3)
    return [winners.index(token) if x > -INF else 0 for token, x in enumerate(ROW)]


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (2, 1.0), (6, 1.0), (0, 0.0), (0, 0.6), (9, 0.99), (4, 0.8)])
def test_exactly_the_tokens_that_may_be_drawn(top_k: int, top_p: float) -> None:
    """Each token has a row, with a seed by which it wins over all: it is drawn there if, and only if, it may be."""
    rows, seeds = torch.tensor(ROW).repeat(len(ROW), 1), torch.tensor(winning_seeds())
    found = run(rows, temperature=1.5, top_k=top_k, top_p=top_p, seeds=seeds, positions=3)
    may = support(list(ROW), 1.5, top_k, top_p).keys()
    assert {token for token, drawn in enumerate(found) if token == drawn} == may
    assert set(found) <= may


@pytest.mark.parametrize("by", ["seeds", "positions"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 0.9)])
def test_the_distribution(by: str, top_k: int, top_p: float) -> None:
    """Of the reference, which draws as the kernel does, and quickly."""
    rows = torch.tensor(ROW).expand(30_000, -1)
    options = {"temperature": 0.8, "top_k": top_k, "top_p": top_p, by: torch.arange(30_000)}
    found = referred(rows, **options)
    wanted = support(list(ROW), 0.8, top_k, top_p)
    counts = {token: 30_000 * probability for token, probability in wanted.items()}
    assert sum((found.count(token) - count) ** 2 / count for token, count in counts.items()) < CHI_SQUARE
    assert run(rows[:4], **(options | {by: torch.arange(4)})) == found[:4]


def test_the_ends_of_the_uniform_numbers() -> None:
    """Seeds with a word of 56 and one of 2**32 - 26: in steps of float32, 1 - u would be 1 and 0, and the noise infinite."""
    logits = torch.full((2, 2000), -40.0)
    logits[0, 7] = 0.0
    logits[1, 205] = 0.0
    options = {"seeds": torch.tensor([20524, 33865]), "top_k": torch.tensor([0, 1])}
    assert run(logits, **options) == referred(logits, **options) == [7, 205]


@pytest.mark.parametrize(
    ("dtype", "vocab"),
    [(torch.float32, 1), (torch.float32, 37), (torch.bfloat16, 4096), (torch.float16, 4099), (torch.float32, 8195)],
)
def test_the_reference_is_the_same(dtype: torch.dtype, vocab: int) -> None:
    torch.manual_seed(vocab)
    rows = 4
    logits = (4 * torch.randn(rows, vocab)).to(dtype)
    options = {
        "temperature": torch.tensor([0.7, 1.0, 1.3, 5.0]),
        "top_k": torch.tensor([0, 20, vocab - 1, vocab]),
        "top_p": torch.tensor([1.0, 1.0, 0.8, 0.3]),
        "seeds": torch.randint(-(2**63), 2**63 - 1, (rows,)),
        "positions": torch.tensor([0, 1, 1000, 2**40]),
    }
    assert run(logits, **options) == referred(logits, **options)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    row=st.lists(st.integers(-12, 12).map(lambda x: x / 4) | st.just(-INF), min_size=1, max_size=30),
    top_k=st.integers(0, 32),
    top_p=st.floats(0, 1, width=32),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_any_row(row: list[float], top_k: int, top_p: float, seed: int) -> None:
    logits = torch.tensor([row])
    (token,) = run(logits, top_k=top_k, top_p=top_p, seeds=seed)
    assert [token] == referred(logits, top_k=top_k, top_p=top_p, seeds=seed)
    assert token in (support(row, 1.0, top_k, top_p) if max(row) > -INF else {NOTHING})


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-6, math.nan])
def test_without_temperature_the_first_of_the_highest_wins(temperature: float) -> None:
    logits = torch.zeros(3, 5000)
    logits[0, [4500, 4097, 4999]] = 1.0
    logits[1, 0] = -0.0
    logits[2] = -3.0
    logits[2, 4099] = -2.0
    found = run(logits, temperature=temperature, top_k=2, top_p=0.5)
    assert found == referred(logits, temperature=temperature, top_k=2, top_p=0.5) == [4097, 0, 4099]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_which_nothing_can_be_drawn_and_infinity(temperature: float) -> None:
    logits = torch.randn(6, 4200)
    logits[0] = -INF
    logits[1, 4150] = math.nan
    logits[2, 3] = -math.nan
    logits[2, 4] = INF
    logits[3, [4199, 4098]] = INF
    logits[4] = -INF
    logits[4, 4198] = -3e38
    options = {"temperature": temperature, "top_k": 3, "top_p": 0.9}
    found = run(logits, **options)
    assert found[:5] == [NOTHING, NOTHING, NOTHING, 4098, 4198] and found[5] >= 0
    assert found == referred(logits, **options)


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((8, 5000), -INF)
    logits[:, [17, 4321]] = torch.tensor([-30.0, -31.0])
    options = {"top_k": torch.tensor([0, 1, 2, 40] * 2), "top_p": torch.tensor([1.0] * 4 + [0.999] * 4)}
    found = run(logits, temperature=4.0, seeds=torch.arange(8), **options)
    assert found == referred(logits, temperature=4.0, seeds=torch.arange(8), **options)
    assert set(found) == {17, 4321} and found[1] == found[5] == 17


@pytest.mark.parametrize("temperature", [1e-5, 1e30, INF])
def test_extreme_temperatures(temperature: float) -> None:
    logits = torch.tensor([[0.0, 3e38, -3e38, -INF, 2.0], [1.0, 1.0, -INF, -INF, 0.5]])
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.6)):
        found = run(logits, temperature=temperature, top_k=top_k, top_p=top_p, seeds=5)
        assert all(logits[row, token] > -INF for row, token in enumerate(found))


def test_rows_may_be_strided_and_none() -> None:
    wide = torch.full((3, 6000), math.nan)
    wide[:, 20:5020] = 3 * torch.randn(3, 5000)
    logits = wide[:, 20:5020]
    options = {"top_k": torch.tensor([0, 30, 0]), "top_p": torch.tensor([1.0, 0.9, 0.5])}
    assert run(logits, **options) == run(logits.contiguous(), **options) == referred(logits, **options)
    assert run(logits[:0]) == referred(logits[:0]) == []
    assert run(logits[:, :0]) == referred(logits[:, :0]) == [NOTHING] * 3


def test_the_batch_does_not_matter() -> None:
    torch.manual_seed(1)
    logits, order = 3 * torch.randn(5, 300), torch.tensor([3, 0, 4, 1, 2])
    options = {
        "temperature": torch.rand(5) + 0.5,
        "top_k": torch.tensor([0, 0, 5, 5, 50]),
        "top_p": torch.tensor([1.0, 0.8, 1.0, 0.8, 0.9]),
        "seeds": torch.arange(5),
        "positions": 7 * torch.arange(5),
    }
    found = torch.tensor(run(logits, **options))
    assert run(logits[order], **{name: value[order] for name, value in options.items()}) == found[order].tolist()
    assert run(logits[3:4], **{name: value[3:4] for name, value in options.items()}) == [found[3]]


def test_every_bit_of_the_seed_and_of_the_position_matters() -> None:
    bits = torch.tensor([0, 1, 1 << 31, 1 << 32, 1 << 47, -1 << 63])
    none = torch.zeros(6, dtype=torch.int64)
    found = run(torch.zeros(12, 4096), seeds=torch.cat([bits, none + 9]), positions=torch.cat([none, bits]))
    assert len(set(found)) == 12
