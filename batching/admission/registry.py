"""Admission policies by name."""

import difflib
from collections.abc import Callable, Sequence

from burrstone.batching.admission.brownout import Brownout
from burrstone.batching.admission.policy import Admission, Open
from burrstone.batching.admission.predictive import Predictive
from burrstone.batching.admission.token_bucket import TokenBucket
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import UsageError

_MAKERS: dict[str, Callable[[Sequence[int], StepModel | None], Admission]] = {
    Open.name: lambda priorities, model: Open(),
    TokenBucket.name: lambda priorities, model: TokenBucket(),
    Predictive.name: lambda priorities, model: Predictive(model),
    Brownout.name: lambda priorities, model: Brownout(priorities),
}
ADMISSION_NAMES = tuple(_MAKERS)


def make_admission(name: str, priorities: Sequence[int] = (0,), model: StepModel | None = None) -> Admission:
    """A fresh policy. `priorities`: those that tenants may have. Raises UsageError for a name that there is not."""
    maker = _MAKERS.get(name)
    if maker is None:
        near = difflib.get_close_matches(name, ADMISSION_NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"admission policy {name!r} is none of {', '.join(ADMISSION_NAMES)}{hint}")
    return maker(priorities, model)
