"""What every process imports of a request is light."""

import subprocess
import sys


def test_it_loads_no_numba() -> None:
    """vLLM's CPU worker fails where Numba was loaded before the engine stands, and all that start engines import this."""
    seen = "import sys, burrstone.batching.request; print(sorted({'numba', 'numpy', 'vllm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout == "[]\n"
