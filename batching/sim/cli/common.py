"""What `sim run` and `sim fleet` read alike: engines, traffic, SLOs, and where the report goes."""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path

from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.errors import UsageError
from burrstone.batching.policies.spec import Knobs, PolicySpec
from burrstone.batching.routing.spec import RouterSpec, router_policy
from burrstone.batching.sim.cli.calibrate import load_step_model, load_step_ratios
from burrstone.batching.sim.cli.traffic import DEFAULT_TPOT_S, DEFAULT_TTFT_S
from burrstone.batching.sim.spec import EngineSpec


def engine_specs(arguments: argparse.Namespace) -> list[EngineSpec]:
    """One engine a policy, otherwise alike. Raises UsageError."""
    names = [str(policy_of(name)) for name in arguments.policy or arguments.default_policies]
    model = DEFAULT_STEP_MODEL if arguments.step_model is None else load_step_model(arguments.step_model)
    common = EngineSpec(
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        block_size=arguments.block_size,
        num_blocks=arguments.num_blocks,
        prefix_caching=arguments.prefix_caching,
        step_model=model,
        step_ratios=_step_ratios(arguments),
        noise_seed=arguments.seeds[0],
        knobs=_knobs(arguments.knob or []),
    )
    return [replace(common, policy=name) for name in dict.fromkeys(names)]


def _step_ratios(arguments: argparse.Namespace) -> tuple[float, ...]:
    if not arguments.scatter:
        return ()
    if arguments.step_model is None:
        raise UsageError("--scatter: the built-in model has none; name a calibrated one with --step-model")
    return load_step_ratios(arguments.step_model)


def policy_of(name: str) -> PolicySpec:
    """The engine policy of that name. Raises UsageError with the nearest one."""
    try:
        return PolicySpec.parse(name)
    except UsageError as error:
        raise UsageError(f"--policy: {error}") from error


def _knobs(given: Sequence[tuple[str, float]]) -> Knobs:
    try:
        return Knobs.from_dict(dict(given))
    except UsageError as error:
        raise UsageError(f"--knob: {error}") from error


def router_of(name: str) -> RouterSpec:
    """The router policy of that name. Raises UsageError with the nearest one."""
    try:
        return router_policy(name)
    except UsageError as error:
        raise UsageError(f"--router: {error}") from error


def slo_text(arguments: argparse.Namespace) -> str:
    """The SLOs of the flags, in words."""
    said = [
        f"{what} within {value:g} s"
        for what, value in (
            ("first token", arguments.ttft_s),
            ("later ones", arguments.tpot_s),
            ("all", arguments.e2e_s),
        )
        if value is not None
    ]
    default = (
        f"the workload's own, else first token within {DEFAULT_TTFT_S:g} s and later ones within {DEFAULT_TPOT_S:g} s"
    )
    return ", ".join(said) if said else default


def engine_facts(arguments: argparse.Namespace, spec: EngineSpec) -> dict[str, str]:
    """What a report says of the engine."""
    model = ", ".join(f"{field.name} {getattr(spec.step_model, field.name):.4g}" for field in fields(spec.step_model))
    source = str(arguments.step_model) if arguments.step_model else "built in: an 8B model on one GPU"
    caching = "on" if spec.prefix_caching else "off"
    return {
        "workload": f"{arguments.workload}, {arguments.duration_s:g} s",
        "SLOs": slo_text(arguments),
        "engine": (
            f"{spec.max_num_seqs} requests in a batch, {spec.max_num_batched_tokens} tokens in a step, "
            f"{spec.num_blocks} KV blocks of {spec.block_size} tokens, prefix caching {caching}"
        ),
        "step model": f"{source}: {model}",
        "burrstone": version("burrstone"),
    }


def write_report(path: Path, html: str) -> None:
    """Raises UsageError where it cannot be written."""
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--report {path}: {error.strerror}; name a file in a folder that exists") from error
