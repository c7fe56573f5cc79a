"""The vllm.general_plugins entry point. vLLM calls `register` in every process it starts; it must be cheap and idempotent."""

import functools
import logging
import multiprocessing
import os
from typing import Any

log = logging.getLogger("burrstone.plugin")


def register() -> None:
    """Prepare this process for vLLM on a CPU. Does nothing where there is nothing to do."""
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    fork_workers()
    request_amx_permission(torch)
    tolerate_plain_compiled_functions(torch)


def fork_workers() -> None:
    """Fork the worker from the engine core, which has imported all of vLLM, instead of importing it again for ten seconds.

    The front end lives in a Ray actor, so vLLM makes it spawn and leaves that wish to its children; the engine core
    itself is no Ray actor, and forking is what vLLM does there by default.
    """
    if multiprocessing.parent_process() is not None:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"


def request_amx_permission(torch: Any) -> bool:
    """Ask the kernel for AMX tiles now: a small first batch may use them before oneDNN asks, and die of SIGILL."""
    init = getattr(torch.cpu, "_init_amx", None)
    if init is None or not torch.cpu._is_amx_tile_supported():
        return False
    return bool(init())


def tolerate_plain_compiled_functions(torch: Any) -> None:
    """Let vLLM load the artifact it saved at the last start.

    On the CPU the loaded artifact wraps a plain function, which lacks the `finalize_loading` that vLLM then calls; vLLM
    takes the error for a broken file and compiles for half a minute, at every start. A plain function has nothing left
    to finalize, so it gets one that does nothing. Where upstream returns an object that has the method, this is inert.
    """
    original = torch.compiler.load_compiled_function
    if hasattr(original, "_burrstone_original"):
        return

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        loaded = original(*args, **kwargs)
        compiled = getattr(getattr(loaded, "_artifacts", None), "compiled_fn", None)
        if compiled is not None and not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = lambda vllm_config: None
        return loaded

    load._burrstone_original = original  # type: ignore[attr-defined]
    torch.compiler.load_compiled_function = load
