"""What an engine is, and the arrays of a world of such engines."""

from dataclasses import dataclass, field

import numpy as np

from burrstone.batching.core.requests import NEVER_S, new_tenants
from burrstone.batching.core.rng import Rng
from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL, StepModel
from burrstone.batching.core.step_noise import NO_NOISE
from burrstone.batching.errors import UsageError
from burrstone.batching.policies.spec import Knobs, PolicySpec
from burrstone.batching.sim.world import PIN, PROGRAM, Kv, World, new_engines, new_kv, new_rows


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One vLLM engine. num_blocks: usable KV blocks, one less than vLLM's num_gpu_blocks."""

    policy: str = "fcfs"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    num_blocks: int = 100_000
    prefix_caching: bool = False
    step_model: StepModel = DEFAULT_STEP_MODEL
    knobs: Knobs = field(default_factory=Knobs)
    max_pins: int = 256  # finished calls of programs whose KV cache is kept at a time
    step_ratios: tuple[float, ...] = ()  # how steps scattered around the model when it was calibrated; none if empty
    noise_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "block_size", "num_blocks", "max_pins"):
            if getattr(self, name) < 1:
                raise UsageError(f"engine: {name} must be >= 1, got {getattr(self, name)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                f"engine: max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), as in vLLM"
            )
        if any(not ratio > 0 for ratio in self.step_ratios):
            raise UsageError(f"engine: step_ratios must be > 0, got {min(self.step_ratios)}; calibrate again")
        self.tiers()

    def tiers(self) -> PolicySpec:
        """The policy, parsed. Raises UsageError for one that does not exist."""
        return PolicySpec.parse(self.policy, self.knobs)

    @property
    def pins_programs(self) -> bool:
        """Whether a finished call's KV cache waits for its program's next call."""
        return "program" in self.tiers().tiers and self.knobs.ttl_s > 0


def new_world(
    spec: EngineSpec,
    num_engines: int,
    num_rows: int,
    num_waiting: int,
    tenant_weight: np.ndarray,
    blocks_per_sequence: int = 1,
    block_hashes: np.ndarray | None = None,
    hash_tokens: int = 16,
    num_programs: int = 0,
) -> World:
    """Equal idle engines, which hold num_rows requests together and num_waiting waiting ones each; requests name
    programs below num_programs.

    blocks_per_sequence and block_hashes matter with prefix caching only.
    """
    requests, jobs, free_rows = new_rows(num_rows)
    num_pins = spec.max_pins if spec.pins_programs else 1
    tenants = np.tile(new_tenants(len(tenant_weight)), (num_engines, 1))
    tenants["weight"] = tenant_weight
    programs = np.zeros(max(num_programs, 1), PROGRAM)
    programs["last_end_s"] = NEVER_S
    return World(
        engines=_engines(spec, num_engines, hash_tokens),
        requests=requests,
        jobs=jobs,
        free_rows=free_rows,
        queues=np.zeros((num_engines, 4 * spec.max_num_seqs + 2 * num_waiting), np.int64),
        pins=np.zeros((num_engines, num_pins), PIN),
        programs=programs,
        tenants=tenants,
        step_ratios=np.array(spec.step_ratios) if spec.step_ratios else NO_NOISE,
        block_hashes=np.empty(0, np.uint64) if block_hashes is None else block_hashes,
        kv=_kv(spec, num_engines, num_pins, blocks_per_sequence),
    )


def _engines(spec: EngineSpec, num_engines: int, hash_tokens: int) -> np.ndarray:
    policy = spec.tiers()
    engines = new_engines(num_engines)
    for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks", "prefix_caching"):
        engines[name] = getattr(spec, name)
    engines["neutral"] = policy.neutral
    engines["charges"] = "vtc" in policy.tiers
    engines["pins"] = spec.pins_programs
    engines["free_blocks"] = spec.num_blocks
    engines["head"] = 3 * spec.max_num_seqs
    engines["hash_tokens"] = hash_tokens
    engines["model"] = spec.step_model.coefficients()
    engines["policy"] = policy.record()
    if spec.step_ratios:
        engines["noise_seed"] = [int(Rng(spec.noise_seed, e).uniform() * 2**53) for e in range(num_engines)]
    return engines


def _kv(spec: EngineSpec, num_engines: int, num_pins: int, blocks_per_sequence: int) -> Kv:
    if not spec.prefix_caching:
        return new_kv(num_engines, 0, 1, 1)
    return new_kv(num_engines, spec.num_blocks, spec.max_num_seqs + num_pins + 1, blocks_per_sequence)
