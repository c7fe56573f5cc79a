"""What there is to say about a kernel before it can be checked and timed: its inputs, its float64, its bytes, its peers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from burrstone.kernels.measure.peers import Peer

# Of Llama 3.1 8B.
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 32, 8, 128
Arguments = dict[str, Any]
Shape = dict[str, int]
# A peer, or several whose best counts -> how many times as fast as it.
Ratios = dict[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Make:
    """Random inputs on a device, all from one generator."""

    generator: torch.Generator

    @classmethod
    def seeded(cls, device: torch.device, seed: int) -> "Make":
        return cls(torch.Generator(device).manual_seed(seed))

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32).to(dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def int8(self, *shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, generator=self.generator, device=self.device, dtype=torch.int8)

    def below(self, end: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(end, shape, generator=self.generator, device=self.device, dtype=dtype)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator, device=self.device)

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that must be read and written, and the operations on the unit that does them: "int8" or "bf16"."""

    num_bytes: int
    operations: int
    unit: str = "bf16"


@dataclass(frozen=True, slots=True)
class Goal:
    """roof: share of the measured ceiling."""

    ratios: Ratios = field(default_factory=dict)
    roof: float | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One op. shapes: those that are timed, the most telling first; awkward: small ones for correctness alone; tiny: the
    rehearsal's. value: float64 of what peers must come near to; None where what they compute is drawn by chance. in_place:
    arguments that are read before they are written. rival: the peer that an engine would run in its place."""

    name: str
    inputs: Callable[[Make, Shape], Arguments]
    check: Callable[[Arguments, Arguments], None]
    value: Callable[[Arguments], Tensor] | None
    cost: Callable[[Shape], Cost]
    goal: Callable[[Shape], Goal]
    shapes: tuple[Shape, ...]
    awkward: tuple[Shape, ...]
    tiny: tuple[Shape, ...]
    peers: tuple[Peer, ...] = ()
    in_place: frozenset[str] = frozenset()
    rival: str | None = None


def told(shape: Shape) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items())


def clones(arguments: Arguments) -> Arguments:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
