"""What the device can do at most, measured: bytes a second of a copy, operations a second of matrix products; and what a launch costs."""

from dataclasses import dataclass

import torch

from burrstone.kernels.measure.cases.case import Cost, Make
from burrstone.kernels.measure.device import Device
from burrstone.kernels.measure.timing import alone_us

_COPY_BYTES = 2**30
_SIDE = 8192
_TINY_BYTES, _TINY_SIDE = 2**16, 64


@dataclass(frozen=True, slots=True)
class Ceilings:
    """copy_gb_s: read and written together. launch_us: of the smallest kernel, in a graph."""

    copy_gb_s: float
    int8_top_s: float
    bf16_top_s: float
    launch_us: float

    def floor_us(self, cost: Cost) -> tuple[float, str]:
        """(the least time that this takes, what takes it)."""
        memory_us = cost.num_bytes / self.copy_gb_s / 1e3
        rate = self.int8_top_s if cost.unit == "int8" else self.bf16_top_s
        arithmetic_us = cost.operations / rate / 1e6
        return max((memory_us, "bytes"), (arithmetic_us, cost.unit))


def measured(device: Device, make: Make) -> Ceilings:
    num_bytes, side = (_TINY_BYTES, _TINY_SIDE) if device.rehearsal else (_COPY_BYTES, _SIDE)
    source = make.int8(num_bytes)
    target = torch.empty_like(source)
    copy_us = alone_us(lambda: target.copy_(source), device)
    small = torch.zeros(1, device=device.torch)
    launch_us = alone_us(lambda: small.add_(1.0), device)

    a, b = make.int8(side, side), make.int8(side, side)
    int8_us = alone_us(lambda: torch._int_mm(a, b.T), device)
    wide, other = a.to(torch.bfloat16) / 127, b.to(torch.bfloat16) / 127
    out = torch.empty(side, side, dtype=torch.bfloat16, device=device.torch)
    bf16_us = alone_us(lambda: torch.mm(wide, other.T, out=out), device)
    operations = 2 * side**3
    return Ceilings(
        copy_gb_s=2 * num_bytes / copy_us / 1e3,
        int8_top_s=operations / int8_us / 1e6,
        bf16_top_s=operations / bf16_us / 1e6,
        launch_us=launch_us,
    )
