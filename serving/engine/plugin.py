"""The vllm.general_plugins entry point. vLLM calls `register` in every process it starts; it must be cheap and idempotent."""

import ctypes
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from typing import Any

from burrstone.serving.engine.forkserver import FORKSERVER_ENV

_PR_SET_PDEATHSIG = 1
_PARENT_POLL_S = 0.5


def register() -> None:
    """Prepare this process for vLLM. Does nothing where there is nothing to do."""
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        end_with_parent()
        return
    prepare_engine_core()
    request_amx_permission(torch)
    tolerate_plain_compiled_functions(torch)


def prepare_engine_core() -> None:
    """In an engine core of ours: fork the worker, and die with the process that started us.

    The worker is forked because the core has imported all of vLLM already, which takes ten seconds to repeat. (The front
    end lives in a Ray actor, so vLLM makes it spawn and leaves that wish to its children, who have no reason for it.)
    """
    if FORKSERVER_ENV not in os.environ or multiprocessing.parent_process() is None:
        return
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # A core that failed to start waits for its worker to end, which can be deaf to its SIGTERM, and the replica waits for
    # the core. Runs before that waiting; a core that started has shut its worker down by then.
    multiprocessing.util.Finalize(None, _kill_workers, exitpriority=0)


def _kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def end_with_parent() -> None:
    """In a process that multiprocessing spawned: end when its parent is gone, or a killed replica's core keeps the GPU.

    A thread that watches, for the kernel's own signal comes as soon as the spawning thread ends.
    """
    name = "burrstone-parent-watch"
    if multiprocessing.parent_process() is None or any(thread.name == name for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name=name, daemon=True).start()


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
