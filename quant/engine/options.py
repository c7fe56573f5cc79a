"""Which of our kernels an engine uses: its configuration's `additional_config`, as `burrstone serve` fills it.

It is part of what vLLM's compiled artifacts are named after, so that an artifact is never loaded with other kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from burrstone.quant.engine import vllm_compat as vllm

KEY = "burrstone_kernels"
Linear = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """int8_linear: `auto` where a measurement on this kind of GPU says that ours wins, `on` wherever it takes the shape.
    int8_fusion: INT8 rows made in one launch with the norm or the activation before them. An engine that says nothing has
    none of them."""

    int8_linear: Linear = "off"
    int8_fusion: bool = False


def read(additional_config: Mapping[str, Any]) -> KernelOptions:
    """Raises ValueError for what is not known, by name."""
    given = additional_config.get(KEY, {})
    known = {field.name for field in fields(KernelOptions)}
    if unknown := ", ".join(sorted(set(given) - known)):
        raise ValueError(f"additional_config.{KEY} has no {unknown}; it has {', '.join(sorted(known))}")
    options = KernelOptions(**given)
    if options.int8_linear not in get_args(Linear):
        raise ValueError(f"additional_config.{KEY}.int8_linear must be one of {', '.join(get_args(Linear))}")
    if options.int8_fusion not in (True, False):
        raise ValueError(f"additional_config.{KEY}.int8_fusion must be true or false")
    return options


def current() -> KernelOptions:
    """Of the engine whose model is being built."""
    additional_config = vllm.get_current_vllm_config().additional_config
    return read(additional_config) if isinstance(additional_config, Mapping) else KernelOptions()
