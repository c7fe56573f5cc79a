"""What a device's check accepts of a kernel: the kernels themselves, over the small shapes that it looks at."""

import pytest
import torch

from burrstone.kernels.measure.cases.case import Kernel, Make, Shape, told
from burrstone.kernels.measure.cases.every import CASES
from burrstone.kernels.measure.correctness import compare
from burrstone.kernels.measure.device import find
from burrstone.kernels.registry import KERNELS

SMALL = [(kernel, shape) for kernel in CASES.values() for shape in kernel.awkward]


@pytest.mark.parametrize(("kernel", "shape"), SMALL, ids=[f"{kernel.name} {told(shape)}" for kernel, shape in SMALL])
def test_the_kernel_itself_passes(kernel: Kernel, shape: Shape) -> None:
    make, launch = Make.seeded(torch.device("cpu"), 5), KERNELS[kernel.name].launch
    compare(
        kernel,
        lambda arguments: launch(*arguments.values()),
        kernel.inputs(make, shape),
        lambda: kernel.inputs(make, shape),
        find("cpu"),
        graph=False,
    )
