"""`burrstone sim calibrate`: step logs in, a step model with its doubts out."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from burrstone.batching.core.step_log import LogHeader, StepLoad, read_log
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.sim.cli.output import print_json, print_table
from burrstone.batching.sim.fit.step_drift import DriftDetector
from burrstone.batching.sim.fit.steps import Calibration, StepSamples, fit, samples_of

_MEANING = {
    "base_s": "a step, empty",
    "prefill_token_s": "a prefilled token",
    "decode_seq_s": "a decoding sequence",
    "kv_token_s": "a token of KV read",
    "attention_pair_s": "a pair of tokens in attention",
}


def run(arguments: argparse.Namespace) -> int:
    """Fit, print, and write --out."""
    engine, samples = read_samples(arguments.steplog, arguments.every)
    calibration = fit(samples, arguments.half_life_steps, seed=arguments.seed)
    found = {"steps": calibration.steps, "quality": _quality(calibration, samples), "drift": _drift(samples)}
    if arguments.out is not None:
        _write(arguments.out, calibration)
    if arguments.json:
        print_json(found | {"engine": asdict(engine), **_without_ratios(calibration)})
    else:
        _print(calibration, found, arguments.out)
    return 0


def read_samples(paths: Sequence[Path], every: int) -> tuple[LogHeader, StepSamples]:
    """The timed steps of all logs, and the engine of the first. Raises UsageError for logs of different engines."""
    headers, parts = [], []
    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                header, records = read_log(lines)
                parts.append(samples_of(records, every))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"STEPLOG {path}: {error}; name a file that the engine wrote") from error
        headers.append(header)
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks"):
            if getattr(header, name) != getattr(first, name):
                raise UsageError(
                    f"STEPLOG {path}: {name} is {getattr(header, name)}, in {paths[0]} it is {getattr(first, name)}; "
                    "one model is of one engine, calibrate the logs apart"
                )
    features = np.concatenate([part.features for part in parts])
    return first, StepSamples(features, np.concatenate([part.elapsed_s for part in parts]))


def load_step_model(path: Path) -> StepModel:
    """The model of a file that `sim calibrate` wrote, or of one that holds the five coefficients alone."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return StepModel.from_dict(given.get("model", given))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise UsageError(f"--step-model {path}: {error}; give a file that `burrstone sim calibrate` wrote") from error


def load_step_ratios(path: Path) -> tuple[float, ...]:
    """How steps scattered around the model in a file that `sim calibrate` wrote."""
    try:
        return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8"))).ratios
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--scatter: {path}: {error}; give a --step-model that `burrstone sim calibrate` wrote"
        ) from error


def _quality(calibration: Calibration, samples: StepSamples) -> dict[str, float]:
    modelled_s = samples.features @ calibration.model.coefficients()
    off = np.abs(samples.elapsed_s / np.maximum(modelled_s, 1e-9) - 1)
    around = float(np.sum((samples.elapsed_s - samples.elapsed_s.mean()) ** 2))
    return {
        "r_squared": 1 - float(np.sum((samples.elapsed_s - modelled_s) ** 2)) / around if around else 1.0,
        "median_error": float(np.median(off)),
        "p95_error": float(np.quantile(off, 0.95)),
        "total_error": float(modelled_s.sum() / samples.elapsed_s.sum() - 1),
        "sigma": calibration.sigma,
    }


def _drift(samples: StepSamples) -> dict[str, Any]:
    """Whether the second half still follows a model of the first one."""
    half = len(samples.elapsed_s) // 2
    try:
        detector = DriftDetector(fit(StepSamples(samples.features[:half], samples.elapsed_s[:half]), rounds=1))
    except UsageError as reason:
        return {"alarms": None, "reason": f"the first half cannot be fitted alone: {reason}"}
    fired = [
        half + index
        for index in range(len(samples.elapsed_s) - half)
        if detector.observe(StepLoad(*samples.features[half + index, 1:]), float(samples.elapsed_s[half + index]))
    ]
    return {"alarms": len(fired), "first_alarm_step": fired[0] if fired else None}


def _without_ratios(calibration: Calibration) -> dict[str, Any]:
    return {name: value for name, value in calibration.to_dict().items() if name != "ratios"}


def _write(path: Path, calibration: Calibration) -> None:
    try:
        path.write_text(json.dumps(calibration.to_dict()) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {path}: {error}; name a file that can be written") from error


def _print(calibration: Calibration, found: dict[str, Any], out: Path | None) -> None:
    models = [asdict(model) for model in (calibration.model, calibration.low, calibration.high)]
    rows = [[name, meaning, *(f"{model[name] * 1e6:.4g}" for model in models)] for name, meaning in _MEANING.items()]
    head = ["coefficient", "cost of", "us", "low", "high"]
    print_table(f"Fitted to {calibration.steps:,} steps; intervals are 95 %", head, rows, words=2)
    quality, drift = found["quality"], found["drift"]
    print(
        f"fit: R2 {quality['r_squared']:.4f}, |error| of a step p50 {100 * quality['median_error']:.1f} %, "
        f"p95 {100 * quality['p95_error']:.1f} %, of the whole time {100 * quality['total_error']:+.1f} %"
    )
    if drift["alarms"] is None:
        print(f"drift: not judged, {drift['reason']}")
    elif drift["alarms"]:
        print(f"drift: {drift['alarms']} alarms, the first at step {drift['first_alarm_step']}: the engine has changed")
    else:
        print("drift: none, the second half follows a model of the first")
    for name in models[0]:
        if models[0][name] == 0:
            print(f"note: {name} is 0; the log varies too little to tell its cost from the others'")
    print(f"written to {out}" if out else "not written; keep it with --out model.json")
