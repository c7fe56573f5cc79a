"""`burrstone kernels bench`: is it right, what can the device do, how fast is each kernel beside its peers; in this order."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from burrstone.kernels.measure import timing
from burrstone.kernels.measure.bars import relative
from burrstone.kernels.measure.budget import Budget
from burrstone.kernels.measure.cases.case import Kernel, Make, Shape, told
from burrstone.kernels.measure.ceilings import Ceilings, measured
from burrstone.kernels.measure.correctness import wrong
from burrstone.kernels.measure.device import Device, described
from burrstone.kernels.measure.peers import Absent, Peer, as_value, load_vllm
from burrstone.kernels.measure.tables import tunable
from burrstone.kernels.measure.verdict import judged
from burrstone.kernels.select import select

# Of the time, at most: a kernel whose turn comes later is not timed.
_CORRECTNESS_SHARE = 0.5
# A peer rounds as we do; one that is farther off computes something else.
_PEER_OFF = 0.05
_QUICK_SHAPES = 2
_LOADED = "loaded"
_OURS, _AGAIN = "ours", "ours, again"
SCHEMA = "burrstone.kernels.bench/1"
# Geometric mean over its shapes that a kernel must reach beside a peer.
_GEOMEANS = {("gemm_w8a8_decode", "vLLM: cutlass_scaled_mm"): 1.1}


@dataclass(frozen=True, slots=True)
class Plan:
    kernels: Sequence[Kernel]
    device: Device
    seed: int
    budget: Budget
    quick: bool = False
    check_only: bool = False
    graph: bool = True
    vllm_library: str | None = None

    def shapes(self, kernel: Kernel) -> tuple[Shape, ...]:
        """Those that are timed."""
        if self.device.rehearsal:
            return kernel.tiny
        return kernel.shapes[:_QUICK_SHAPES] if self.quick else kernel.shapes

    def checked(self, kernel: Kernel) -> tuple[Shape, ...]:
        """Those whose result is looked at: all that are timed, and awkward ones; of a quick check alone, only these."""
        if self.device.rehearsal:
            return kernel.tiny
        return kernel.awkward if self.quick and self.check_only else (*kernel.awkward, *self.shapes(kernel))


class Lost(Exception):
    """The device's context, by a fault after which nothing runs in this process. where: a row of what was cut."""

    def __init__(self, kernel: Kernel, shape: Shape) -> None:
        what = "the device's context was lost here: nothing after it was checked or timed; the others with --only"
        self.where = {"kernel": kernel.name, "shape": told(shape), "what": what}
        super().__init__(what)


def _still_there(device: Device, kernel: Kernel, shape: Shape) -> None:
    if device.lost():
        raise Lost(kernel, shape)


def bench(plan: Plan, say: Callable[[str], None], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The results, as JSON values. keep: is given them each time there is more, so that a run that is stopped leaves what it has."""
    no_vllm = load_vllm(plan.vllm_library)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        **described(plan.device),
        "rehearsal": plan.device.rehearsal,
        "seed": plan.seed,
        "budget_s": plan.budget.seconds,
        "spent_s": 0.0,
        "complete": False,
        "vllm": no_vllm or _LOADED,
        "correctness": {},
        "ceilings": None,
        "cases": [],
        "geomeans": [],
        "cut": [],
    }

    def kept() -> None:
        results["spent_s"] = round(plan.budget.spent_s, 1)
        keep(results)

    say(f"seed {plan.seed}; vLLM's ops: {results['vllm']}")
    try:
        _measure(plan, results, say, kept)
        results["complete"] = True
    except Lost as lost:
        say(f"{lost.where['kernel']} {lost.where['shape']}: {lost.where['what']}")
        results["cut"].append(lost.where)
    kept()
    return results


def _measure(plan: Plan, results: dict[str, Any], say: Callable[[str], None], kept: Callable[[], None]) -> None:
    try:
        _correctness(plan, results, say)
    except Lost:
        for row in results["correctness"].values():
            row["ok"] = row["ok"] and None
        raise
    kept()
    if not plan.check_only:
        ceilings = measured(plan.device, Make.seeded(plan.device.torch, plan.seed))
        results["ceilings"] = {name: round(value, 3) for name, value in asdict(ceilings).items()}
        say(
            f"a copy moves {ceilings.copy_gb_s:.0f} GB/s, INT8 {ceilings.int8_top_s:.0f} TOP/s, bfloat16 "
            f"{ceilings.bf16_top_s:.0f} TFLOP/s, a launch takes {ceilings.launch_us:.2f} us"
        )
        _timing(plan, ceilings, results, say, kept)
        results["geomeans"] = _geomeans(results["cases"], judged=plan.device.judged)


def _correctness(plan: Plan, results: dict[str, Any], say: Callable[[str], None]) -> None:
    todo = [(kernel, shape) for kernel in plan.kernels for shape in plan.checked(kernel)]
    limit_s = plan.budget.seconds * (1.0 if plan.check_only else _CORRECTNESS_SHARE)
    for kernel in plan.kernels:
        results["correctness"][kernel.name] = {"ok": True, "checked": 0, "wrong": []}
    # A shape of each kernel in turns, so that no kernel alone is what the time does not do for.
    for kernel, shape in _in_turns(todo):
        row = results["correctness"][kernel.name]
        if plan.budget.spent_s > limit_s:
            row["ok"] = row["ok"] and None
            results["cut"].append(
                {"kernel": kernel.name, "shape": told(shape), "what": "correctness, and so its timing"}
            )
            continue
        fault = wrong(kernel, shape, plan.device, plan.seed, graph=plan.graph)
        row["checked"] += 1
        if fault:
            row["ok"] = False
            row["wrong"].append({"shape": told(shape), "what": fault})
            say(f"{kernel.name} {told(shape)}: WRONG: {fault}")
            _still_there(plan.device, kernel, shape)
        plan.device.free()
    for name, row in results["correctness"].items():
        what = f"{len(row['wrong'])} wrong" if row["wrong"] else "all right" if row["ok"] else "not all were reached"
        say(f"{name}: {row['checked']} shapes checked, {what}")


def _timing(
    plan: Plan, ceilings: Ceilings, results: dict[str, Any], say: Callable[[str], None], kept: Callable[[], None]
) -> None:
    unfit = {name for name, row in results["correctness"].items() if row["wrong"]}
    unchecked = {(row["kernel"], row["shape"]) for row in results["cut"]}
    todo = _in_turns(
        [(kernel, shape) for kernel in plan.kernels if kernel.name not in unfit for shape in plan.shapes(kernel)]
    )
    todo = [(kernel, shape) for kernel, shape in todo if (kernel.name, told(shape)) not in unchecked]
    for place, (kernel, shape) in enumerate(todo):
        share_s = plan.budget.share_s(len(todo) - place)
        try:
            row = _case(plan, kernel, shape, ceilings, share_s) if share_s > 0 else "no time is left"
        except Exception as error:  # noqa: BLE001  a driver's: what is found so far is kept, and the others go on
            row = f"it fails: {type(error).__name__}: {error}"[:500]
            results["correctness"][kernel.name]["wrong"].append({"shape": told(shape), "what": row})
            _still_there(plan.device, kernel, shape)
        if isinstance(row, str):
            results["cut"].append({"kernel": kernel.name, "shape": told(shape), "what": f"timing: {row}"})
            say(f"{kernel.name} {told(shape)}: cut: {row}")
        else:
            if results["vllm"] != _LOADED:
                # What is not there is not there because of this.
                row["absent"] = {
                    name: f"{why}: {results['vllm']}" if "torch.ops._C" in why else why
                    for name, why in row["absent"].items()
                }
            results["cases"].append(row)
            say(_line(row))
            kept()
        plan.device.free()


def _case(plan: Plan, kernel: Kernel, shape: Shape, ceilings: Ceilings, share_s: float) -> dict[str, Any] | str:
    """A row of the results, or why there is none."""
    device, cost, mine = plan.device, kernel.cost(shape), Budget(share_s, plan.budget.clock)
    make, op = Make.seeded(device.torch, plan.seed), getattr(torch.ops.burrstone, kernel.name)
    sets = [kernel.inputs(make, shape) for _ in range(timing.sets_for(cost.num_bytes, device))]
    value = kernel.value(sets[0]) if kernel.value else None
    absent: dict[str, str] = {}
    peers: list[timing.Contender] = []
    errors: dict[str, float] = {}
    for peer in kernel.peers:
        try:
            if mine.left_s <= 0:
                raise Absent("no time was left to prepare it")
            contender = timing.Contender(peer.name, [peer.prepare(given) for given in sets], peer.graph)
            if value is not None:
                errors[peer.name] = _off(peer, contender, value)
            timing.prepare(contender, device)
            peers.append(contender)
        except Absent as reason:
            absent[peer.name] = str(reason)
        except Exception as error:  # noqa: BLE001  whatever a peer fails with, it is what is told of it
            absent[peer.name] = f"{type(error).__name__}: {error}".strip()[:300]
    # After the peers were looked at: an op may write what it reads.
    calls = [lambda given=given: op(*given.values()) for given in sets]
    ours = [timing.Contender(name, calls) for name in (_OURS, _AGAIN)]
    for contender in ours:
        timing.prepare(contender, device)
    count = timing.rounds([*ours, *peers], device, max(mine.left_s, share_s / 2))
    if not count:
        return f"{timing.LEAST_SAMPLES} samples of each do not fit its share, {share_s:.1f} s"

    us, again = ours[0].median_us, ours[1].median_us
    floor_us, bound = ceilings.floor_us(cost)
    times = {peer.name: peer.median_us for peer in peers}
    best = min(times, key=times.__getitem__) if times else None
    row = {
        "kernel": kernel.name,
        "shape": told(shape),
        "us": _round(us),
        "iqr_us": _round(ours[0].iqr_us),
        "samples": count,
        "launches": ours[0].launches,
        "graph": ours[0].replay is not None,
        "noise": _round(abs(again / us - 1)),
        "sets": len(sets),
        "beyond_l2": len(sets) * cost.num_bytes > device.l2_bytes,
        "bytes": cost.num_bytes,
        "operations": cost.operations,
        "unit": cost.unit,
        "floor_us": _round(floor_us),
        "bound": bound,
        "fraction": _round(floor_us / us),
        "tile": _tile(kernel.name, shape, device),
        "peers": {
            peer.name: {
                "us": _round(peer.median_us),
                "iqr_us": _round(peer.iqr_us),
                "graph": peer.replay is not None,
                "ratio": _round(peer.median_us / us),
                "off": errors.get(peer.name),
            }
            for peer in peers
        },
        "absent": absent,
        "best_peer": best,
        "ratio": _round(times[best] / us) if best else None,
    }
    return row | judged(row, kernel.goal(shape), ceilings, is_judged=device.judged)


def _off(peer: Peer, contender: timing.Contender, value: torch.Tensor) -> float:
    """How far it is from float64. Raises Absent where it computes something else."""
    found = as_value(contender.calls[0]())
    if found.shape != value.shape:
        raise Absent(f"its result is {list(found.shape)}, not {list(value.shape)}")
    off = relative(found, value)
    if not off <= _PEER_OFF:
        raise Absent(f"it computes something else: off by {off:.3g}")
    return _round(off)


def _tile(name: str, shape: Shape, device: Device) -> str | None:
    """Of a kernel that has a table: which one, and by what."""
    if name not in tunable():
        return None
    choice = select(name, device.arch if not device.rehearsal else "sm90", *shape.values())
    return f"{choice.tile.told}, {choice.source}"


def _in_turns(todo: Sequence[tuple[Kernel, Shape]]) -> list[tuple[Kernel, Shape]]:
    """A kernel's first shape, the next one's first, and so on, before any one's second."""
    by_kernel: dict[str, list[tuple[Kernel, Shape]]] = {}
    for kernel, shape in todo:
        by_kernel.setdefault(kernel.name, []).append((kernel, shape))
    turns = itertools.zip_longest(*by_kernel.values())
    return [each for turn in turns for each in turn if each is not None]


def _geomeans(cases: Sequence[dict[str, Any]], *, judged: bool) -> list[dict[str, Any]]:
    """Of each kernel beside each peer, over the shapes that both were timed at."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in cases:
        for name, peer in row["peers"].items():
            ratios.setdefault((row["kernel"], name), []).append(peer["ratio"])
    rows = []
    for (kernel, peer), found in ratios.items():
        ratio, goal = _round(statistics.geometric_mean(found)), _GEOMEANS.get((kernel, peer)) if judged else None
        ok = None if goal is None else ratio >= goal
        rows.append({"kernel": kernel, "peer": peer, "shapes": len(found), "ratio": ratio, "goal": goal, "ok": ok})
    return rows


def _line(row: dict[str, Any]) -> str:
    beside = f", {row['ratio']:.2f}x of {row['best_peer']}" if row["best_peer"] else ""
    return f"{row['kernel']} {row['shape']}: {row['us']:.1f} us, {row['fraction']:.0%} of the ceiling{beside}"


def _round(value: float) -> float:
    return float(f"{value:.4g}")
