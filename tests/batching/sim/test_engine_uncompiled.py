"""The simulator's kernels decide the same compiled and as plain Python."""

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import numpy as np
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Prefixes, Workload

rng = np.random.default_rng(7)
size = 60
starts = np.arange(size + 1) * 3
prefixes = Prefixes(starts, np.tile(np.arange(1, 4, dtype=np.uint64), size), 8)
workload = Workload(
    np.cumsum(rng.exponential(0.05, size)), rng.integers(24, 60, size), rng.integers(1, 30, size),
    tenant=rng.integers(0, 3, size), program=rng.integers(-1, 6, size), priority=rng.integers(0, 2, size),
    max_tokens=np.full(size, 40), ttft_s=rng.choice([0.1, np.inf], size), tpot_s=rng.choice([0.05, np.inf], size),
    cancel_s=np.where(rng.random(size) < 0.1, 0.3, np.inf),
    after=np.where(np.arange(size) % 4 == 3, np.arange(size) - 2, -1),
    think_s=rng.exponential(0.2, size), tenant_weight=np.array([1.0, 2.0, 0.5]), prefixes=prefixes,
)
for policy in ("fcfs", "priority > vtc > slo", "program > sjf-rank"):
    for mode in ("exact", "macro"):
        result = simulate(EngineSpec(policy, 6, 64, 8, 30, True), workload, mode)
        print(policy, mode, result.outcome_hash, result.plan_hash, result.makespan_s)
        assert result.num_preemptions > 0 and result.hit_tokens > 0
"""


def _output(*, compiled: bool) -> list[str]:
    environment = os.environ | {"NUMBA_DISABLE_JIT": str(int(not compiled))}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled here")
def test_plain_python_decides_the_same() -> None:
    compiled = _output(compiled=True)
    assert len(compiled) == 6
    assert _output(compiled=False) == compiled
