"""`burrstone kernels tune`: try tiles on the device that is here, and write the fastest of each shape into the kernels' tables.

Candidates are compiled, run and compared with float64 in a few processes beside this one: what they compile is in Triton's
cache by then, and one that breaks the device's context takes none of the others with it that is not running just then. The survivors are timed here, a few samples each, and the best of them in
rounds with their peers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burrstone.kernels.builds import LLAMA_8B
from burrstone.kernels.measure import timing
from burrstone.kernels.measure.budget import Budget
from burrstone.kernels.measure.candidates import candidates
from burrstone.kernels.measure.cases.case import Arguments, Kernel, Make, Shape, told
from burrstone.kernels.measure.cases.every import CASES
from burrstone.kernels.measure.device import Device, described
from burrstone.kernels.measure.peers import Absent, load_vllm
from burrstone.kernels.measure.progress import Progress
from burrstone.kernels.measure.tables import Row, merge
from burrstone.kernels.measure.trials import Trials, call, with_room
from burrstone.kernels.select import Tile

BUCKETS = (16, 32, 64)
# Of a shape's time: what compiling may take.
_COMPILING_SHARE = 0.6
_FINALISTS = 4
# Less is not told apart from noise.
_WINS_BY = 0.02
_TINY = {"m": 16, "n": 128, "k": 512}


@dataclass(frozen=True, slots=True)
class Tuning:
    names: Sequence[str]
    device: Device
    folder: Path
    seed: int
    budget: Budget
    count: int
    processes: int
    vllm_library: str | None = None

    def todo(self) -> list[tuple[Kernel, Shape]]:
        """The least and the most of the first kernel, then of the others, before the shapes in between."""
        if self.device.rehearsal:
            return [(CASES[name], _TINY) for name in self.names]
        shapes = [{"m": m, "n": n, "k": k} for m in BUCKETS for n, k in LLAMA_8B]
        return [(CASES[name], shape) for shape in shapes for name in self.names]


def tune(tuning: Tuning) -> list[str]:
    """Returns what was cut. Rows are written as they are found, so a run that is stopped keeps them."""
    cut: list[str] = []
    todo = tuning.todo()
    processes = 0 if tuning.device.rehearsal else tuning.processes
    with Progress(len(todo), "shape") as progress, Trials(tuning.device, tuning.seed, processes) as trials:
        progress.say(f"seed {tuning.seed}; vLLM's ops: {load_vllm(tuning.vllm_library) or 'loaded'}")
        for place, (kernel, shape) in enumerate(todo):
            share_s = tuning.budget.share_s(len(todo) - place)
            name = f"{kernel.name} {told(shape)}"
            if share_s <= 0:
                cut.append(f"{name}: no time is left")
                continue
            row, line = _tuned(tuning, kernel, shape, share_s, trials, progress.say)
            if row is None:
                cut.append(f"{name}: {line}")
            else:
                merge(tuning.folder, kernel.name, [row])
            progress.step(f"{name}: {line}")
            tuning.device.free()
    return cut


def _tuned(
    tuning: Tuning, kernel: Kernel, shape: Shape, share_s: float, trials: Trials, say: Callable[[str], None]
) -> tuple[Row | None, str]:
    """(the row, or None; what to tell)."""
    device, mine = tuning.device, Budget(share_s, tuning.budget.clock)
    m, n, k = shape.values()
    arch = device.arch if not device.rehearsal else "sm90"
    tried = candidates(arch, m, n, k, a_bytes=1 if kernel.cost(shape).unit == "int8" else 2, count=tuning.count)
    faults = trials.faults(kernel.name, shape, tried, share_s * _COMPILING_SHARE)
    fit = [tile for tile in tried if tile in faults and faults[tile] is None]
    if not fit:
        reasons = next((fault for fault in faults.values() if fault), "none was compiled in its time")
        return None, f"none of {len(tried)} tiles is fit: {reasons}"

    make = Make.seeded(device.torch, tuning.seed)
    sets = [kernel.inputs(make, shape) for _ in range(timing.sets_for(kernel.cost(shape).num_bytes, device))]
    quick = {tile: timing.quick_us(_contender(kernel, tile, sets), device) for tile in fit if mine.left_s > 0}
    if not quick:
        return None, "no time was left to sample any"
    finalists = sorted(quick, key=quick.__getitem__)[:_FINALISTS]
    ours = {tile: _contender(kernel, tile, sets) for tile in finalists}
    for contender in ours.values():
        timing.prepare(contender, device)
    peers = list(_peers(kernel, sets, device, say))
    if not timing.rounds([*ours.values(), *peers], device, max(mine.left_s, share_s / 4)):
        return None, f"{timing.LEAST_SAMPLES} samples of each do not fit its share, {share_s:.1f} s"
    best = min(finalists, key=lambda tile: ours[tile].median_us)
    us, beside = ours[best].median_us, {peer.name: round(peer.median_us, 3) for peer in peers}
    row = {
        "arch": device.arch,
        **shape,
        "tile": asdict(best),
        # Against others alone it says nothing of what an engine would run in its place.
        "wins": us * (1 + _WINS_BY) < min(beside.values()) if kernel.rival in beside and not device.rehearsal else None,
        "provenance": _provenance(device)
        | {
            "us": round(us, 3),
            "best_peer_us": min(beside.values(), default=None),
            "peers_us": beside,
            "tried": len(quick),
        },
    }
    return row, _line(row, best, best == tried[0], len(tried) - len(quick))


def _provenance(device: Device) -> dict[str, Any]:
    found = described(device)
    return {name: found[name] for name in ("device", "triton", "torch", "date")}


def _line(row: Row, best: Tile, is_predicted: bool, left_out: int) -> str:
    where = row["provenance"]
    tile = f"{best.told}, as the cost model has it" if is_predicted else best.told
    beside = f", best peer {where['best_peer_us']:.1f} us" if where["best_peer_us"] is not None else ""
    return f"{where['us']:.1f} us with {tile}{beside}; {where['tried']} tiles timed, {left_out} not fit or not reached"


def _contender(kernel: Kernel, tile: Tile, sets: Sequence[Arguments]) -> timing.Contender:
    return timing.Contender(tile.told, [call(kernel.name, tile, with_room(given, tile)) for given in sets])


def _peers(
    kernel: Kernel, sets: Sequence[Arguments], device: Device, say: Callable[[str], None]
) -> Iterator[timing.Contender]:
    """Those that are there."""
    for peer in kernel.peers:
        try:
            contender = timing.Contender(peer.name, [peer.prepare(given) for given in sets], peer.graph)
            timing.prepare(contender, device)
        except Exception as error:  # noqa: BLE001  absent or failing, it is not what this one is measured against
            if not isinstance(error, Absent):
                say(f"{peer.name}: {type(error).__name__}: {error}"[:300])
            continue
        yield contender
