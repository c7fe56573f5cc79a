"""compute-sanitizer over the small shapes: reads and writes beyond the end, and races in shared memory."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = ("memcheck", "racecheck")
_FOUND = 99
_PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer")
_TAIL = 1500


def sanitize(only: Sequence[str], seed: int, limit_s: float, say: Callable[[str], None]) -> dict[str, str]:
    """Tool -> what came of it: "clean", "absent: why" or "found: what"."""
    found = {}
    binary = shutil.which("compute-sanitizer") or next((place for place in _PLACES if Path(place).is_file()), None)
    for tool in TOOLS:
        if binary is None:
            found[tool] = "absent: no compute-sanitizer on the path or in /usr/local/cuda"
        else:
            found[tool] = _run(
                [binary, "--tool", tool, "--error-exitcode", str(_FOUND)], only, seed, limit_s / len(TOOLS)
            )
        say(f"{tool}: {found[tool]}")
    return found


def _run(prefix: Sequence[str], only: Sequence[str], seed: int, limit_s: float) -> str:
    """Graphs hide from it what a launch does, so it goes without them."""
    names = [part for name in only for part in ("--only", name)]
    ours = ["bench", "--check-only", "--quick", "--no-graph", "--seed", str(seed), *names]
    command = [*prefix, sys.executable, "-m", "burrstone.kernels.cli", *ours]
    try:
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=max(1.0, limit_s))
    except subprocess.TimeoutExpired:
        return f"absent: it did not end within {limit_s:.0f} s"
    if run.returncode == 0:
        return "clean"
    return f"found: exit code {run.returncode}: {(run.stdout + run.stderr)[-_TAIL:]}"
