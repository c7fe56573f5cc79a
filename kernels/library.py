"""The ops as PyTorch knows them: `torch.ops.burrstone.NAME`, safe to capture and to compile.

An op writes into tensors it is given and returns nothing, so that memory is the caller's and a CUDA graph may replay it. On a
GPU its Triton kernel runs, or the reference where the kernel does not take the shape; elsewhere the reference. Which, and
why, is logged the first time and counted: `choices`.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

_log = logging.getLogger(__name__)
_LIBRARY = torch.library.Library("burrstone", "FRAGMENT")
# (op, what ran, why) -> calls; a graph's replays are not calls.
choices: Counter[tuple[str, str, str]] = Counter()


def register(
    name: str,
    signature: str,
    *,
    launch: Callable[..., None],
    reference: Callable[..., None],
    refused: Callable[..., str | None],
) -> Callable[..., None]:
    """The op. signature: as torch.library.define takes it. refused: why the kernel does not take these arguments."""

    def on_gpu(*arguments: Any) -> None:
        reason = refused(*arguments)
        if reason:
            count(name, "reference", reason, logging.WARNING)
        else:
            count(name, "triton", "on a GPU")
        (reference if reason else launch)(*arguments)

    def elsewhere(*arguments: Any) -> None:
        count(name, "reference", "not on a GPU")
        reference(*arguments)

    _LIBRARY.define(f"{name}{signature}")
    _LIBRARY.impl(name, on_gpu, "CUDA")
    _LIBRARY.impl(name, elsewhere, "CPU")
    torch.library.register_fake(f"burrstone::{name}", lambda *_: None, lib=_LIBRARY)
    op: Callable[..., None] = getattr(torch.ops.burrstone, name)
    return op


@functools.cache
def arch_of(device: torch.device) -> str:
    """A name such as sm90 or gfx942; sm90 where there is no GPU, as the interpreter has no architecture."""
    if device.type != "cuda":
        return "sm90"
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def count(name: str, what: str, why: str, level: int = logging.INFO) -> None:
    """Log a choice the first time, and count it."""
    if (name, what, why) not in choices:
        _log.log(level, "%s: %s (%s)", name, what, why)
    choices[name, what, why] += 1
