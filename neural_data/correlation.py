"""Pearson correlation along an axis, and over stimuli that count several times or not at all.

Comes in: arrays whose other axes broadcast. Goes out: correlations, float64, NaN where they are undefined.
"""

import numpy as np

# Variance below this share of the mean square is rounding: of equal numbers it is rarely zero to the last bit.
ROUNDING = 1e-12


def pearson(a: np.ndarray, b: np.ndarray, axis: int = 0) -> np.ndarray:
    """Pearson correlation along `axis`, float64, of two arrays whose other axes broadcast.

    NaN where either does not vary or holds a NaN. Raises ValueError where the lengths along `axis` differ.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape[axis] != b.shape[axis] or not a.shape[axis]:
        raise ValueError(f"pearson needs equal lengths, at least 1, found {a.shape[axis]} and {b.shape[axis]}")
    a_unit, b_unit = _unit_length(a, axis), _unit_length(b, axis)
    return np.clip((a_unit * b_unit).sum(axis=axis), -1.0, 1.0)


def weighted_pearson(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlation over stimuli of two arrays (..., stimuli, neurons), float64 (..., resamples, neurons).

    `weights` (resamples, stimuli): how often each stimulus counts. Whole numbers give the correlation of arrays in
    which each stimulus stands that often. NaN where what counts does not vary or holds a NaN.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    missing = np.isnan(a) | np.isnan(b)
    a, b = _about_zero(np.where(missing, np.nan, a)), _about_zero(np.where(missing, np.nan, b))
    count = weights.sum(axis=1)[:, None]
    a_sum, b_sum = weights @ a, weights @ b
    a_scatter, b_scatter = (weighted_scatter(weights @ x**2, s, count) for x, s in ((a, a_sum), (b, b_sum)))
    product = weights @ (a * b) - a_sum * b_sum / count
    length = np.sqrt(a_scatter * b_scatter)
    defined = length > 0
    if missing.any():
        defined &= (weights @ missing) == 0
    correlation = np.divide(product, length, out=np.full(product.shape, np.nan), where=defined)
    return np.clip(correlation, -1.0, 1.0)


def check_weights(weights: np.ndarray, n_stimuli: int) -> None:
    """Raise ValueError unless weights are (resamples, stimuli), not negative, and each resample counts something."""
    if weights.ndim != 2 or weights.shape[1] != n_stimuli:
        raise ValueError(f"weights have shape {weights.shape}, expected (resamples, {n_stimuli} stimuli)")
    if not (weights >= 0).all() or not (weights.sum(axis=1) > 0).all():
        raise ValueError("weights must say how often each stimulus counts: 0 or more, and not 0 for all of a resample")


def weighted_scatter(squares: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Sum of squared deviations from the mean, from the sum of squares, the sum and the count; 0 if it is rounding."""
    scatter = squares - np.divide(total**2, count, out=np.zeros_like(squares), where=count > 0)
    return np.where(scatter > ROUNDING * squares, scatter, 0.0)


def _about_zero(values: np.ndarray) -> np.ndarray:
    """Values minus their mean over stimuli and divided by the largest, so that sums of squares are exact; NaN is 0."""
    present = ~np.isnan(values)
    values = np.where(present, values, 0.0)
    count = np.maximum(present.sum(axis=-2, keepdims=True), 1)
    centred = np.where(present, values - values.sum(axis=-2, keepdims=True) / count, 0.0)
    largest = np.abs(centred).max(axis=-2, keepdims=True)
    return np.divide(centred, largest, out=centred, where=largest > 0)


def _unit_length(values: np.ndarray, axis: int) -> np.ndarray:
    """Values minus their mean along `axis`, divided by their length; NaN where they do not vary."""
    # Compared before centring: the mean of equal numbers need not be that number, to the last bit.
    varies = values.max(axis=axis, keepdims=True) > values.min(axis=axis, keepdims=True)
    centred = values - values.mean(axis=axis, keepdims=True)
    # Scaled first, so that squares of very small or large numbers neither vanish nor overflow.
    scale = np.abs(centred).max(axis=axis, keepdims=True)
    np.divide(centred, scale, out=centred, where=varies)
    length = np.sqrt((centred**2).sum(axis=axis, keepdims=True))
    return np.divide(centred, length, out=np.full(values.shape, np.nan), where=varies)
