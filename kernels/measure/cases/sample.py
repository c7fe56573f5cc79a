"""The kernel that draws tokens: K10."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burrstone.kernels.measure.bars import TooFar
from burrstone.kernels.measure.cases.case import Arguments, Cost, Goal, Kernel, Make, Shape
from burrstone.kernels.measure.peers import Peer, missing

VOCAB = 128256
_SORTED = "torch, sorted"
# What float32 cannot tell apart in a sum of probabilities.
_MASS = 1e-4


def _inputs(make: Make, shape: Shape) -> Arguments:
    """As requests ask for it; every fourth wants the highest."""
    rows, vocab = shape["m"], shape["vocab"]
    temperature = make.uniform(rows) * 0.8 + 0.4
    temperature[3::4] = 0.0
    return {
        "out": make.empty(rows, dtype=torch.int64),
        "logits": make.normal(rows, vocab) * 3,
        "temperature": temperature,
        "top_k": make.below(min(64, vocab), rows, dtype=torch.int32),
        "top_p": make.uniform(rows) * 0.4 + 0.6,
        "seeds": make.below(2**62, rows),
        "positions": make.below(4096, rows),
    }


def _check(given: Arguments, found: Arguments) -> None:
    """Not which token, for which other roundings give another: that it is one of those that may be drawn, row by row."""
    for row, token in enumerate(found["out"].tolist()):
        x = given["logits"][row].double()
        if not 0 <= token < len(x):
            raise TooFar(f"row {row} has {token}, which is no token")
        temperature, top_k = float(given["temperature"][row]), int(given["top_k"][row])
        above = x > x[token]
        if temperature == 0.0 and above.any():
            raise TooFar(f"row {row} has not its highest")
        if temperature == 0.0:
            continue
        if top_k and int(above.sum()) >= top_k:
            raise TooFar(f"row {row} has one that is not among its highest {top_k}")
        masses = ((x - x.max()) / temperature).exp()
        kept = masses if not top_k else torch.where(x >= x.topk(top_k).values[-1], masses, 0.0)
        if float(kept[above].sum() / kept.sum()) >= float(given["top_p"][row]) + _MASS:
            raise TooFar(f"row {row} has one beyond its top-p")


def _sorted(given: Arguments) -> Callable[[], Any]:
    """As engines without a kernel do it: sort, cut, draw by an exponential race. Its draws are others."""
    vocab = given["logits"].shape[1]
    temperature = given["temperature"].clamp(min=1e-5)[:, None]
    first = vocab - torch.where(given["top_k"] > 0, given["top_k"], vocab)[:, None].long()
    left_out = 1 - given["top_p"][:, None]
    logits = given["logits"]

    def call() -> Tensor:
        values, order = (logits.float() / temperature).sort(dim=-1)
        values = values.masked_fill(values < values.gather(1, first), -torch.inf)
        beyond = values.softmax(dim=-1).cumsum(dim=-1) <= left_out
        beyond[:, -1] = False
        probabilities = values.masked_fill(beyond, -torch.inf).softmax(dim=-1)
        winner = probabilities.div(torch.empty_like(probabilities).exponential_()).argmax(dim=-1, keepdim=True)
        return order.gather(1, winner)

    return call


SAMPLE = Kernel(
    name="sample",
    inputs=_inputs,
    check=_check,
    value=None,
    cost=lambda shape: Cost(
        num_bytes=2 * shape["m"] * shape["vocab"] + 44 * shape["m"], operations=4 * shape["m"] * shape["vocab"]
    ),
    goal=lambda _: Goal({(_SORTED,): 2.0}, roof=0.35),
    shapes=tuple({"m": m, "vocab": VOCAB} for m in (64, 1, 128, 16)),
    awkward=({"m": 2, "vocab": 50257}, {"m": 9, "vocab": 1000}),
    tiny=({"m": 5, "vocab": 300},),
    peers=(Peer(_SORTED, _sorted), missing("FlashInfer", "it builds its kernels at run time, which is not tried here")),
)
