"""Whether a case reaches its goal, and what a miss is due to, as far as the run itself can tell."""

from typing import Any

from burrstone.kernels.measure.cases.case import Goal
from burrstone.kernels.measure.ceilings import Ceilings

_NEAR_THE_CEILING = 0.8
_LAUNCHES = 2.0


def judged(row: dict[str, Any], goal: Goal, ceilings: Ceilings, *, is_judged: bool) -> dict[str, Any]:
    """goal, ok, reason. ok is None where nothing could be judged or a part of the goal could not; reason says why, and of a
    miss what it is due to."""
    if not is_judged:
        return {"goal": None, "ok": None, "reason": "goals are set for H100 and H200"}
    parts, missed, absent = [], [], []
    for names, least in goal.ratios.items():
        parts.append(f"{least:g}x of {' and '.join(names)}")
        there = [name for name in names if name in row["peers"]]
        absent += [f"{name} is absent" for name in names if name not in there]
        if there:
            best = min(there, key=lambda name: row["peers"][name]["us"])
            if (ratio := row["peers"][best]["ratio"]) < least:
                missed.append(f"{ratio:.2f}x of {best}, {least:g}x wanted")
    if goal.roof is not None:
        parts.append(f"{goal.roof:.0%} of the ceiling")
        if row["fraction"] < goal.roof:
            missed.append(f"{row['fraction']:.0%} of the ceiling, {goal.roof:.0%} wanted")
    ok = False if missed else None if absent or not parts else True
    told = [*missed, *absent] + ([_cause(row, ceilings)] if missed else [])
    return {"goal": "; ".join(parts) or None, "ok": ok, "reason": "; ".join(told) or None}


def _cause(row: dict[str, Any], ceilings: Ceilings) -> str:
    if row["us"] <= _LAUNCHES * ceilings.launch_us:
        return f"it takes little more than a launch does, {ceilings.launch_us:.1f} us"
    if row["fraction"] >= _NEAR_THE_CEILING:
        return f"it is near its ceiling ({row['bound']}): the peer is too, or does less"
    if row["noise"] > 0.05:
        return f"the run is noisy: the same kernel differs by {row['noise']:.0%}"
    where = (
        f"neither bytes nor arithmetic is what takes its time: {row['fraction']:.0%} of the ceiling ({row['bound']})"
    )
    if row["tile"] and row["tile"].endswith("cost model"):
        return f"{where}; its tile was not measured (`burrstone kernels tune`)"
    return where
