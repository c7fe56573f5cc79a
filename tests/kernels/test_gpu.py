"""The kernels on a GPU, where there is one."""

import subprocess
import sys

import pytest
import torch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_every_kernel_computes_what_float64_does() -> None:
    """In a process of its own: a kernel that breaks takes its process's GPU with it."""
    command = [sys.executable, "-m", "burrstone.kernels.cli", "bench", "--check-only"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-6000:]
