"""`@kernel`: a function that runs the same, compiled or not. Policies and the simulator are made of these.

A kernel takes numbers and NumPy arrays, touches nothing else, and uses no fast-math, so that the compiled and the
plain function (NUMBA_DISABLE_JIT=1) give equal bits: the scheduler in the engine and the simulator decide alike.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import config as numba_config

from burrstone.batching.core.environment import CACHE_ENV
from burrstone.batching.core.parts import Kernel

_F = TypeVar("_F", bound=Callable[..., Any])
_ROOM = Path(__file__).parents[1]


def _cache_folder() -> Path | None:
    # Numba looks only at a function's own file to see whether its machine code is stale, not at what the function
    # calls. So the folder is named after all sources with kernels or what they read; None where it cannot be written.
    digest = hashlib.sha256()
    for path in sorted(_ROOM.rglob("*.py")):
        source = path.read_bytes()
        if b"kernel\n" in source or b"np.dtype(" in source or path.parent.name == "core":
            digest.update(path.name.encode() + source)
    root = Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "burrstone")
    folder = root / "batching" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


_FOLDER = _cache_folder()


def kernel(function: _F) -> _F:
    """Compile at the first call; the machine code is kept for the next process."""
    # Said aloud, for a lean kernel's choice goes for all that it calls without one of its own.
    return _compiled(function, _nrt=True)


def lean_kernel(function: _F) -> _F:
    """A kernel that makes no new array. It counts no references to those it is given, which costs more than most of
    the work on them; one that does allocate fails to compile."""
    return _compiled(function, _nrt=False)


def large(function: _F) -> _F:
    """Above @kernel or @lean_kernel: callers call it, where they hold a copy of others. For what is long and called from
    several places."""
    if isinstance(function, Kernel):
        function.targetoptions["forceinline"] = False
    return function


def _compiled(function: _F, **options: bool) -> _F:
    if numba_config.DISABLE_JIT:
        return function
    # Nobody takes the address of a kernel, as a C function would be needed for.
    whole = numba.njit(no_cfunc_wrapper=True, **options)(function)
    if _FOLDER is not None:
        before, numba_config.CACHE_DIR = numba_config.CACHE_DIR, str(_FOLDER)
        try:
            whole.enable_caching()
        finally:
            numba_config.CACHE_DIR = before
    return cast(_F, Kernel(function, whole, options))
