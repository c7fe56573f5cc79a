"""How near a kernel must come to float64."""

import torch
from torch import Tensor

QMAX = 127
# A quotient so near the middle of two integers may go to either.
_TIE = 1e-3


def assert_rows(rounded: Tensor, scales: Tensor, y: Tensor) -> None:
    """INT8 rows of y, float64 [rows, n], all of it finite."""
    wanted_scales = (y.abs().amax(dim=-1) / QMAX).clamp(min=1e-10) if y.shape[-1] else torch.full(y.shape[:1], 1e-10)
    torch.testing.assert_close(scales.double(), wanted_scales.double(), rtol=1e-6, atol=0)
    quotients = y / wanted_scales[:, None]
    wanted = quotients.round().clamp(-QMAX, QMAX)
    off = (rounded.double() - wanted).abs()
    near_tie = ((quotients - quotients.floor()) - 0.5).abs() <= _TIE
    assert not off[~near_tie].any(), "a value that is near no tie was rounded otherwise"
    assert off.numel() == 0 or off.max() <= 1


def assert_bfloat16(found: Tensor, wanted: Tensor) -> None:
    """Within one unit in the last place of bfloat16 (or float16) of float64, or of what is nothing beside the largest."""
    eps = torch.finfo(found.dtype).eps
    near_zero = 1e-6 * wanted.abs().max() if wanted.numel() else 0.0
    off = (found.double() - wanted).abs() - near_zero
    assert found.isfinite().all()
    assert (off <= eps * wanted.abs()).all(), f"off by {(off / wanted.abs().clamp(min=1e-30)).max():.3g}"


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
