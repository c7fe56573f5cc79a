"""The live targets' command line and process; what they measure takes a quiet machine, and is measured there."""

import subprocess
import sys

import pytest

from burrstone.batching.errors import UsageError
from burrstone.bench.live_targets import NUMBERS, LivePlan


def test_an_unknown_target_is_refused_with_those_there_are() -> None:
    assert LivePlan().numbers == NUMBERS
    with pytest.raises(UsageError, match="--only 3: no such live target; there are 1, 2, 5, 6, 8, 10"):
        LivePlan((1, 3))


def test_numba_is_not_loaded_before_the_engine_stands() -> None:
    """vLLM's CPU worker, on its start, looks into every loaded module and fails on llvmlite's."""
    modules = "burrstone.bench.live_process, burrstone.bench.live_engine, burrstone.serving.engine.plugin"
    check = f"import sys, {modules}; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", check], check=False).returncode == 0
