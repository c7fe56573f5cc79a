"""Whether a tile can be compiled, spills nothing and computes what float64 does: tried in processes of their own."""

import multiprocessing
from collections.abc import Callable, Sequence
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
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

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
        try:
            for tile in tiles:
                jobs[self._pool.submit(fault, name, shape, tile, self._device, self._seed)] = tile
        except BrokenProcessPool:
            pass  # by one of those before, which says so
        done, late = wait(jobs, timeout=limit_s)
        for job in late:
            job.cancel()
        found = {jobs[job]: job.result() if (error := job.exception()) is None else _told(error) for job in done}
        if any(isinstance(job.exception(), BrokenProcessPool) for job in done):
            self._pool = None
        return found


def fault(name: str, shape: Shape, tile: Tile, device: Device, seed: int) -> str | None:
    """Compile and run one tile. Returns why it is not fit, or None."""
    kernel, make = CASES[name], Make.seeded(device.torch, seed)
    try:
        # What stands in `static` moves nowhere, so the call that is made of it here is the one that is compared.
        static = with_room(kernel.inputs(make, shape), tile)
        run = call(name, tile, static)
        compare(kernel, lambda _: run(), static, lambda: kernel.inputs(make, shape), device, graph=False)
        if spilled := _spilled(name):
            raise TooFar(f"{spilled} registers spill")
    except Exception as error:  # noqa: BLE001  a compiler's, a driver's or a bar's: this tile is skipped
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


def _spilled(name: str) -> int:
    """Of what was compiled last, as far as this Triton tells."""
    most = 0
    for value in vars(KERNELS[name]).values():
        caches: Any = getattr(value, "device_caches", {})
        for cache in caches.values():
            if compiled := list(cache[0].values()):
                most = max(most, int(getattr(compiled[-1], "n_spills", 0) or 0))
    return most


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip()[:300]
