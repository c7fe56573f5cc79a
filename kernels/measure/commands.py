"""`burrstone kernels bench`, `tune` and `report`, behind their flags."""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from burrstone.kernels.measure import device as devices
from burrstone.kernels.measure.bench import SCHEMA, Plan, bench
from burrstone.kernels.measure.budget import Budget
from burrstone.kernels.measure.cases.every import chosen
from burrstone.kernels.measure.device import Device, Unusable
from burrstone.kernels.measure.files import write_json
from burrstone.kernels.measure.peers import load_vllm
from burrstone.kernels.measure.report import REHEARSAL, write_report
from burrstone.kernels.measure.sanitizer import sanitize
from burrstone.kernels.measure.tables import tunable
from burrstone.kernels.measure.tune import Tuning, tune

# Of the time, at most.
_SANITIZER_SHARE = 0.3


def run_bench(arguments: argparse.Namespace) -> int:
    """1: a kernel is wrong, or was not checked where that is all that is asked for, or the sanitizer found something."""
    budget = Budget(arguments.budget_s)
    device = devices.find(arguments.device)
    kernels = chosen(arguments.only)
    _check_writable(arguments.out)
    _check_vllm(arguments.vllm_library)
    if device.rehearsal and arguments.out is not None and _is_real(arguments.out):
        raise Unusable(f"--out {arguments.out} holds what a GPU did, and this is a rehearsal; give it another name")
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    if arguments.sanitizer and device.rehearsal:
        raise Unusable("--sanitizer looks at what a GPU does; there is nothing to rehearse")
    _rehearse(device)
    sanitized: dict[str, str] = {}
    if arguments.sanitizer:
        sanitized = sanitize(arguments.only, seed, budget.seconds * _SANITIZER_SHARE, _say)
    plan = Plan(
        kernels=kernels,
        device=device,
        seed=seed,
        budget=budget,
        quick=arguments.quick,
        check_only=arguments.check_only,
        graph=not arguments.no_graph,
        vllm_library=None if arguments.vllm_library is None else str(arguments.vllm_library),
    )

    def keep(results: dict[str, Any]) -> None:
        if arguments.out is not None:
            write_json(arguments.out, results | {"sanitizer": sanitized})

    try:
        results = bench(plan, _say, keep)
    except KeyboardInterrupt:
        if arguments.out is not None and arguments.out.exists():
            _say(f"{arguments.out} holds what was done until now; `burrstone kernels report {arguments.out}` draws it")
        raise
    if arguments.out is not None:
        for line in (f"{arguments.out} written", *write_report(results, arguments.out)):
            _say(line)
    for row in results["cut"]:
        _say(f"cut: {row['kernel']} {row['shape']}: {row['what']}")
    wrong = [name for name, row in results["correctness"].items() if row["wrong"]]
    if wrong:
        _say(f"wrong, and not timed: {', '.join(wrong)}")
    unchecked = [name for name, row in results["correctness"].items() if not row["checked"]]
    if unchecked:
        _say(f"not checked at all: {', '.join(unchecked)}")
    return (
        1
        if wrong
        or unchecked
        or (arguments.check_only and results["cut"])
        or any(what.startswith("found") for what in sanitized.values())
        else 0
    )


def run_tune(arguments: argparse.Namespace) -> int:
    """1: a shape has no row."""
    budget = Budget(arguments.budget_s)
    device = devices.find(arguments.device)
    if unknown := [name for name in arguments.only if name not in tunable()]:
        raise Unusable(f"{unknown[0]} has no table of tiles; {', '.join(tunable())} have one")
    if device.rehearsal and arguments.out is None:
        raise Unusable("a rehearsal wants --out: its rows must not get into the kernels' own tables")
    folder = Path(str(files("burrstone.kernels.tuned"))) if arguments.out is None else arguments.out
    _check_vllm(arguments.vllm_library)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"--out {folder} is no folder that tables can be written into: {error.strerror}") from error
    tuning = Tuning(
        names=arguments.only or tunable(),
        device=device,
        folder=folder,
        seed=secrets.randbelow(2**31) if arguments.seed is None else arguments.seed,
        budget=budget,
        count=arguments.candidates,
        processes=arguments.processes,
        vllm_library=None if arguments.vllm_library is None else str(arguments.vllm_library),
    )
    _rehearse(device)
    cut = tune(tuning)
    for line in cut:
        _say(f"cut: {line}")
    _say(f"tables are in {folder}")
    return 1 if cut else 0


def run_report(arguments: argparse.Namespace) -> int:
    file: Path = arguments.results
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise Unusable(f"{file} is no JSON: {error}") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise Unusable(f"{file} holds no results of `burrstone kernels bench`, which say so by schema {SCHEMA!r}")
    for line in write_report(results, file):
        _say(line)
    return 0


def run_told(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """What `run` returns; 2, and what is wrong, for what cannot be done."""
    try:
        return run(arguments)
    except (Unusable, OSError) as error:
        print(f"burrstone: {error}", file=sys.stderr)
        return 2


def _check_writable(file: Path | None) -> None:
    """Before minutes are spent on what it is to hold."""
    if file is None:
        return
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Unusable(f"--out {file} cannot be written")
    if file.suffix != ".json":
        raise Unusable(f"--out {file}: results are JSON; the table and the picture are written beside them")


def _check_vllm(library: Path | None) -> None:
    """Before minutes are spent without the peers that were asked for."""
    if library is not None and (why := load_vllm(str(library))):
        raise Unusable(f"--vllm-library: {why}")


def _is_real(file: Path) -> bool:
    try:
        return json.loads(file.read_text()).get("rehearsal") is False
    except (OSError, ValueError, AttributeError):
        return False


def _rehearse(device: Device) -> None:
    """Say so, where it is one; on one thread, as tiny tensors want no more and others work beside it."""
    if device.rehearsal:
        _say(REHEARSAL)
        torch.set_num_threads(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
