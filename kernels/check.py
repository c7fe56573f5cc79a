"""`burrstone kernels check`: the compile gate over every kernel, build and target, several at once, beside the golden figures."""

import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import triton
from tqdm import tqdm

from burrstone.kernels.gate import TARGETS, compiled, faults
from burrstone.kernels.registry import KERNELS, builds

# Kernel's build -> target -> figures.
Figures = dict[str, dict[str, dict[str, Any]]]


def golden_file() -> Path:
    """Of the Triton that runs: another version's registers are others."""
    return Path(str(files("burrstone.kernels.golden"))) / f"triton-{triton.__version__}.json"


def check(processes: int) -> tuple[dict[str, Any], Figures]:
    """(what to tell, all figures)."""
    jobs = [(number, target) for number, build in enumerate(builds()) for target in build.architectures]
    figures: Figures = {}
    failures: list[str] = []
    with ProcessPoolExecutor(processes) as pool:
        done = tqdm(pool.map(_job, jobs), total=len(jobs), unit="build", file=sys.stderr, disable=None)
        for (number, target), (found, wrong) in zip(jobs, done, strict=True):
            name = builds()[number].name
            figures.setdefault(name, {})[target] = found
            failures += [f"{name} on {target}: {fault}" for fault in wrong]
    golden: Figures | None = json.loads(golden_file().read_text()) if golden_file().is_file() else None
    failures += [] if golden is None else list(differences(golden, figures))
    told = {
        "triton": triton.__version__,
        "kernels": len(KERNELS),
        "configs": len(builds()),
        "targets": list(TARGETS),
        "compiled": len(jobs),
        "golden": None if golden is None else golden_file().name,
        "failures": failures,
    }
    return told, figures


def differences(golden: Figures, found: Figures) -> Iterator[str]:
    """A line for each figure that is another one."""
    for name in sorted({*golden, *found}):
        for target in sorted({*golden.get(name, ()), *found.get(name, ())}):
            old, new = golden.get(name, {}).get(target), found.get(name, {}).get(target)
            if old is None or new is None:
                told = "gone" if new is None else f"new: {json.dumps(new)}"
                yield f"{name} on {target}: {told}; see --update-golden"
            elif changed := ", ".join(_changes(old, new)):
                yield f"{name} on {target}: {changed}; see --update-golden"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*old, *new}):
        was, now = old.get(key, 0), new.get(key, 0)
        if isinstance(was, dict) or isinstance(now, dict):
            yield from _changes(was or {}, now or {})
        elif was != now:
            yield f"{key} {was} -> {now}"


def _job(job: tuple[int, str]) -> tuple[dict[str, Any], list[str]]:
    number, name = job
    build, target = builds()[number], TARGETS[name]
    try:
        figures = compiled(build, target)
    except Exception as error:  # noqa: BLE001  a compiler's errors are of many kinds, each of this build alone
        return {}, [f"does not compile: {type(error).__name__}: {error}"[:500]]
    return figures, list(faults(build, target, figures))
