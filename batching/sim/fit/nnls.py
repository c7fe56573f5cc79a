"""Least squares with coefficients that cannot be negative, made deaf to outliers: what step times are fitted with."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Huber's constant: 95 % as precise as plain least squares where the noise is Gaussian.
_HUBER = 1.345
_MAD_TO_SIGMA = 1.4826


def nnls(features: Floats, target: Floats) -> Floats:
    """min |features @ x - target| over x >= 0 by Lawson and Hanson's active set. features: [rows, n], target: [rows]."""
    scale = np.sqrt((features**2).sum(axis=0))
    scale[scale == 0] = 1.0
    gram = (features / scale).T @ (features / scale)
    return gram_nnls(gram, (features / scale).T @ target) / scale


def gram_nnls(gram: Floats, projected: Floats) -> Floats:
    """The same from features.T @ features and features.T @ target, columns scaled to about unit length."""
    size = len(projected)
    found = np.zeros(size)
    free = np.zeros(size, dtype=bool)
    tolerance = 1e-10 * max(float(np.abs(projected).max()), 1e-300)
    for _ in range(10 * size):
        gradient = projected - gram @ found
        gradient[free] = -np.inf
        if free.all() or gradient.max() <= tolerance:
            break
        free[int(gradient.argmax())] = True
        while True:
            trial = np.zeros(size)
            trial[free] = np.linalg.lstsq(gram[np.ix_(free, free)], projected[free], rcond=None)[0]
            below = free & (trial <= 0)
            if not below.any():
                found = trial
                break
            share = float((found[below] / (found[below] - trial[below])).min())
            found = found + share * (trial - found)
            free &= found > 1e-14 * max(float(found.max()), 1e-300)
            found[~free] = 0.0
    return found


def robust_nnls(features: Floats, target: Floats, weights: Floats, rounds: int = 20) -> tuple[Floats, Floats]:
    """nnls under Huber's loss by reweighting; returns the coefficients and the weight that each row ended with.

    weights: [rows], what each row counts for besides.
    """
    row_weights = weights
    found = _weighted(features, target, row_weights)
    for _ in range(rounds):
        residual = target - features @ found
        limit = _HUBER * max(robust_sigma(residual), 1e-9 * float(np.abs(target).max()))
        row_weights = weights * np.minimum(1.0, limit / np.maximum(np.abs(residual), 1e-300))
        before, found = found, _weighted(features, target, row_weights)
        if np.allclose(found, before, rtol=1e-9, atol=0):
            break
    return found, row_weights


def robust_sigma(values: Floats) -> float:
    """The standard deviation that Gaussian values of this median deviation would have."""
    return _MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))


def _weighted(features: Floats, target: Floats, weights: Floats) -> Floats:
    root = np.sqrt(weights)
    return nnls(features * root[:, None], target * root)
