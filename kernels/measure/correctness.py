"""Whether a kernel computes what float64 does, on the device that it is about to be timed on.

Fresh random inputs, outputs poisoned; twice with the same workspace, which must give the same bits; and once more in a CUDA
graph that was captured with other inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burrstone.kernels.library import choices
from burrstone.kernels.measure.bars import TooFar, assert_same
from burrstone.kernels.measure.cases.case import Arguments, Kernel, Make, Shape, clones
from burrstone.kernels.measure.device import Device

# What programs leave for one another; and their counts, zero between launches, from which the next one counts.
_PARTS, _COUNTS = "parts", "arrivals"
_POISON = {torch.int8: 77, torch.int32: 2**31 - 1, torch.int64: -(2**62)}
Run = Callable[[Arguments], None]


def wrong(kernel: Kernel, shape: Shape, device: Device, seed: int, *, graph: bool = True) -> str | None:
    """What is wrong, or None. graph: whether to replay one; the sanitizer goes without."""
    try:
        _check(kernel, shape, device, seed, graph=graph and not device.rehearsal)
    except Exception as error:  # noqa: BLE001  a compiler's, a driver's or a bar's: the kernel is not fit to be timed
        return f"{type(error).__name__}: {error}".strip()[:500]
    return None


def _check(kernel: Kernel, shape: Shape, device: Device, seed: int, *, graph: bool) -> None:
    make = Make.seeded(device.torch, seed)
    static = kernel.inputs(make, shape)
    compare(kernel, _op(kernel.name, device), static, lambda: kernel.inputs(make, shape), device, graph=graph)


def compare(
    kernel: Kernel, run: Run, static: Arguments, fresh: Callable[[], Arguments], device: Device, *, graph: bool
) -> None:
    """run: over the static arguments, which stay where they are. fresh: other inputs of the same shape. Raises what is wrong."""
    given = clones(static)
    first = _run(kernel, run, static, given, device)
    kernel.check(given, first)
    again = _run(kernel, run, static, given, device)
    for name in written_by(kernel.name) - {_PARTS, _COUNTS}:
        # As bytes: a NaN that is where it was is the same.
        assert_same(
            f"{name}, the second time,", *(found[name].contiguous().view(torch.uint8) for found in (again, first))
        )
    if graph:
        run = _captured(run, static)
    given = clones(fresh())
    kernel.check(given, _run(kernel, run, static, given, device))


def _op(name: str, device: Device) -> Run:
    op = getattr(torch.ops.burrstone, name)

    def run(arguments: Arguments) -> None:
        before = choices.copy()
        op(*arguments.values())
        ran = choices - before
        if not device.rehearsal and (references := [why for _, what, why in ran if what == "reference"]):
            raise TooFar(f"the reference ran in the kernel's place: {references[0]}")

    return run


def _run(kernel: Kernel, run: Run, static: Arguments, given: Arguments, device: Device) -> Arguments:
    """A copy of all arguments after a run of the static ones, which are set to `given` and poisoned before."""
    written = written_by(kernel.name)
    for name, value in static.items():
        if isinstance(value, Tensor) and name != _COUNTS:
            if name in written and name not in kernel.in_place:
                value.fill_(_POISON.get(value.dtype, torch.nan))
            else:
                value.copy_(given[name])
    run(static)
    device.settle()
    if _COUNTS in static and static[_COUNTS].any():
        raise TooFar("the next launch would count on")
    return clones(static)


def _captured(run: Run, static: Arguments) -> Run:
    """A graph of the op over the static arguments."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(static)
    return lambda _: graph.replay()


def written_by(name: str) -> set[str]:
    """The arguments that an op says it writes."""
    arguments: Any = getattr(torch.ops.burrstone, name).default._schema.arguments
    return {argument.name for argument in arguments if argument.alias_info is not None and argument.alias_info.is_write}
