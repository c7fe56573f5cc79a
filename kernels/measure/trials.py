"""Whether a tile can be compiled, spills nothing and computes what float64 does: tried in processes beside this one."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self

from burrstone.kernels.measure.bars import TooFar
from burrstone.kernels.measure.budget import Budget
from burrstone.kernels.measure.cases.case import Arguments, Make, Shape
from burrstone.kernels.measure.cases.every import CASES
from burrstone.kernels.measure.correctness import compare
from burrstone.kernels.measure.device import Device
from burrstone.kernels.registry import KERNELS
from burrstone.kernels.select import Tile
from burrstone.kernels.tall import Workspace


class Trials:
    """processes: at once; with none, all is done here."""

    def __init__(self, device: Device, seed: int, processes: int) -> None:
        self._device, self._seed, self._processes = device, seed, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def faults(self, name: str, shape: Shape, tiles: Sequence[Tile], limit_s: float) -> dict[Tile, str | None]:
        """Tile -> why it is not fit, or None. One that was not reached in time is missing."""
        if self._processes < 1:
            mine, found = Budget(limit_s), {}
            for tile in tiles:
                if mine.left_s > 0:
                    found[tile] = fault(name, shape, tile, self._device, self._seed)
            return found
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._processes, mp_context=multiprocessing.get_context("spawn"))
        jobs: dict[Future[str | None], Tile] = {}
        with contextlib.suppress(BrokenProcessPool):  # by one of those before, which says so
            for tile in tiles:
                jobs[self._pool.submit(fault, name, shape, tile, self._device, self._seed)] = tile
        done, late = wait(jobs, timeout=limit_s)
        found = {jobs[job]: job.result() if (error := job.exception()) is None else _told(error) for job in done}
        if late or len(jobs) < len(tiles) or any(isinstance(job.exception(), BrokenProcessPool) for job in done):
            # What still runs would be on the device while others are timed, and a pool that broke takes nothing more.
            self._stop()
        return found

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for child in multiprocessing.active_children():
                child.kill()
            pool.shutdown(cancel_futures=True)


def fault(name: str, shape: Shape, tile: Tile, device: Device, seed: int) -> str | None:
    """Compile and run one tile. Returns why it is not fit, or None."""
    kernel, make = CASES[name], Make.seeded(device.torch, seed)
    try:
        _forget(name)
        # What stands in `static` moves nowhere, so the call that is made of it here is the one that is compared.
        static = with_room(kernel.inputs(make, shape), tile)
        run = call(name, tile, static)
        compare(kernel, lambda _: run(), static, lambda: kernel.inputs(make, shape), device, graph=False)
        if spilled := _spilled(name):
            raise TooFar(f"{spilled} registers spill")
    except Exception as error:  # noqa: BLE001  a compiler's, a driver's or a bar's: this tile is skipped
        if device.lost():
            # Every later tile would fail here too, in its place. The pool says which one this was, and is made anew.
            os._exit(1)
        return _told(error)
    return None


def call(name: str, tile: Tile, given: Arguments) -> Callable[[], None]:
    """A kernel with this tile; where there is no GPU, its reference."""
    module, arguments = KERNELS[name], tuple(given.values())
    if given["out"].device.type == "cpu":
        return lambda: module.reference(*arguments)
    return lambda: module.launch(*arguments, tile=tile)


def with_room(given: Arguments, tile: Tile) -> Arguments:
    """With the workspace of this tile."""
    m, n = given["out"].shape
    room = Workspace.of(tile, m, n, given["parts"].dtype, given["out"].device)
    return given | {"parts": room.parts, "arrivals": room.arrivals}


def _compiled(name: str) -> Iterator[dict[Any, Any]]:
    """What Triton keeps of the kernels of an op's module, compiled in this process."""
    for value in vars(KERNELS[name]).values():
        for cache in getattr(value, "device_caches", {}).values():
            yield cache[0]


def _forget(name: str) -> None:
    """So that what is there afterwards is this tile's; it is compiled from Triton's files again, if it ever was."""
    for kept in _compiled(name):
        kept.clear()


def _spilled(name: str) -> int:
    """Registers, as far as this Triton tells."""
    kernels = (kernel for kept in _compiled(name) for kernel in kept.values())
    return max((int(getattr(kernel, "n_spills", 0) or 0) for kernel in kernels), default=0)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip()[:300]
