"""How near a kernel must come to float64: what the tests hold it to, and what it must pass on a device before it is timed."""

import torch
from torch import Tensor

from burrstone.kernels.rows import QMAX, SCALE_FLOOR

# A quotient so near the middle of two integers may go to either.
_TIE = 1e-3


class TooFar(AssertionError):
    """A kernel's result is not what float64 says."""


def assert_rows(rounded: Tensor, scales: Tensor, y: Tensor) -> None:
    """INT8 rows of y, float64 [rows, n], all of it finite."""
    top = y.abs().amax(dim=-1) if y.shape[-1] else y.new_zeros(y.shape[:-1])
    wanted_scales = (top / QMAX).clamp(min=SCALE_FLOOR)
    torch.testing.assert_close(scales.double(), wanted_scales.double(), rtol=1e-6, atol=0)
    quotients = y / wanted_scales[:, None]
    off = (rounded.double() - quotients.round().clamp(-QMAX, QMAX)).abs()
    near_tie = ((quotients - quotients.floor()) - 0.5).abs() <= _TIE
    if off[~near_tie].any():
        raise TooFar("a value that is near no tie was rounded otherwise")
    if off.numel() and off.max() > 1:
        raise TooFar(f"a rounded value is off by {off.max():.0f}")


def assert_bfloat16(found: Tensor, wanted: Tensor) -> None:
    """Within one unit in the last place of bfloat16 (or float16) of float64, or of what is nothing beside the largest."""
    eps = torch.finfo(found.dtype).eps
    near_zero = 1e-6 * wanted.abs().max() if wanted.numel() else 0.0
    off = (found.double() - wanted).abs() - near_zero
    if not found.isfinite().all():
        raise TooFar("a result is no number")
    if (off > eps * wanted.abs()).any():
        raise TooFar(f"off by {(off / wanted.abs().clamp(min=1e-30)).max():.3g}")


def assert_relative(found: Tensor, wanted: Tensor, most: float) -> None:
    """As a whole; a NaN is never near enough."""
    off = relative(found, wanted)
    if not off <= most:
        raise TooFar(f"off by {off:.3g} in all, where {most:g} is allowed")


def assert_same(what: str, found: Tensor, wanted: Tensor) -> None:
    if not torch.equal(found, wanted):
        raise TooFar(f"{what} is not what it must be to the bit")


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
