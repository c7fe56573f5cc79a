"""What the scheduler inside the engine core is told. It travels in the environment: vLLM's own place for the settings of
plug-ins counts as part of the compiled model's cache key, and a new policy must not compile the model again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL, StepModel
from burrstone.batching.errors import UsageError
from burrstone.batching.policies.spec import Knobs, PolicySpec
from burrstone.serving.config import ConfigError, SchedulerConfig

SCHEDULER_ENV = "BURRSTONE_SCHEDULER"
SCHEDULER_CLS = "burrstone.serving.engine.scheduling.scheduler.make_scheduler"

# SmolLM2 135M in bfloat16 on two CPU cores without AMX, fitted by `burrstone sim calibrate`'s method to 990 logged steps.
CPU_STEP_MODEL = StepModel(
    base_s=0.0189, prefill_token_s=6.2e-4, decode_seq_s=4.5e-4, kv_token_s=2.6e-6, attention_pair_s=5.2e-7
)


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """`step_log`: where every step is written down, None for nowhere. `knobs`: those that are not the defaults."""

    policy: str = "fcfs"
    knobs: dict[str, float] = field(default_factory=dict)
    step_log: str | None = None
    model: StepModel = DEFAULT_STEP_MODEL

    @classmethod
    def of(cls, scheduler: SchedulerConfig, profile: str) -> Self:
        """What the configuration says. Raises ConfigError for a step model file that cannot be used."""
        return cls(
            policy=scheduler.policy,
            knobs=dict(scheduler.knobs),
            step_log=None if scheduler.step_log is None else str(scheduler.step_log.expanduser().absolute()),
            model=_step_model(scheduler.step_model, profile),
        )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """What `environment` put there; the defaults where nothing stands."""
        values = json.loads(environ.get(SCHEDULER_ENV, "{}"))
        if "model" in values:
            values["model"] = StepModel(**values["model"])
        return cls(**values)

    def environment(self) -> dict[str, str]:
        """For the process that starts the engine core, which inherits it."""
        return {SCHEDULER_ENV: json.dumps(asdict(self))}

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec.parse(self.policy, Knobs.from_dict(self.knobs))


def _step_model(path: Path | None, profile: str) -> StepModel:
    if path is None:
        return CPU_STEP_MODEL if profile == "cpu" else DEFAULT_STEP_MODEL
    try:
        values = json.loads(path.expanduser().read_text())
        return StepModel.from_dict(values.get("model", values))
    except (OSError, ValueError, AttributeError, UsageError) as error:
        raise ConfigError(
            f"scheduler.step_model {str(path)!r} is not a file of `burrstone sim calibrate`: {error}"
        ) from error
