"""Bootstrap intervals of noise ceilings, per neuron.

Comes in: one of the estimates of this room that take `weights`, and its data. Goes out: percentile intervals, float64.

Stimuli are resampled, repeats are not. Stimuli are the independent draws, and a ceiling is meant to hold for others of
their kind. A repeat that is drawn twice would come to lie in both halves, or make up part of its own noise: reliability
would be overestimated, noise underestimated by 1 in R. A resample is a count of each stimulus, so that thousands are
one product of matrices.

Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; draws and percentiles are those of
`scipy.stats.bootstrap(paired=True, method="percentile")` with the same generator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Interval:
    """`low` and `high`, float64 (neurons,), NaN where no resample is defined; `undefined` (neurons,), the share of the
    resamples that are not, and that the interval leaves out."""

    low: np.ndarray
    high: np.ndarray
    undefined: np.ndarray


def bootstrap_interval(
    estimate: Callable[..., np.ndarray],
    responses: np.ndarray,
    *predictions: np.ndarray,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    clip_of_stimulus: np.ndarray | None = None,
    **options: Any,
) -> Interval:
    """Percentile interval of `estimate(responses, *predictions, **options)` over resampled stimuli.

    `responses` (repeats, stimuli, neurons) and `predictions` as the estimate takes them. `level`: share that the
    interval covers. `clip_of_stimulus` int (stimuli,): where stimuli are frames (`pool_clips`), whole clips are
    resampled, because neighbouring frames are not independent. Holds 8 bytes per resample and neuron.

    Raises ValueError for a level outside (0, 1), no resamples, or fewer than 2 stimuli or clips.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, found {level}")
    weights = resampled_counts(responses.shape[1], resamples, seed, clip_of_stimulus)
    drawn = estimate(responses, *predictions, weights=weights, **options)
    undefined = np.isnan(drawn).mean(axis=0)
    tail = (1 - level) / 2
    low, high = _percentiles(drawn, (tail, 1 - tail))
    return Interval(low, high, undefined)


def resampled_counts(stimuli: int, resamples: int, seed: int, clip_of_stimulus: np.ndarray | None = None) -> np.ndarray:
    """How often each stimulus is drawn, with replacement, float64 (resamples, stimuli). Errors as above."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, found {resamples}")
    if clip_of_stimulus is not None:
        if len(clip_of_stimulus) != stimuli:
            raise ValueError(
                f"clip_of_stimulus has length {len(clip_of_stimulus)}, expected {stimuli}, one per stimulus"
            )
        clips, clip = np.unique(clip_of_stimulus, return_inverse=True)
        return resampled_counts(len(clips), resamples, seed)[:, clip]
    if stimuli < 2:
        raise ValueError(f"resampling needs at least 2 stimuli, or clips, found {stimuli}")
    drawn = np.random.default_rng(seed).integers(0, stimuli, (resamples, stimuli))
    place = drawn + stimuli * np.arange(resamples)[:, None]
    return np.bincount(place.ravel(), minlength=resamples * stimuli).reshape(resamples, stimuli).astype(np.float64)


def _percentiles(drawn: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Percentiles (shares, neurons) over the resamples (resamples, neurons) that are defined; sorts `drawn`."""
    drawn.sort(axis=0)  # NaN comes last
    last = (~np.isnan(drawn)).sum(axis=0) - 1
    found = []
    for share in shares:
        at = np.maximum(last, 0) * share
        below = np.floor(at).astype(int)
        above = np.minimum(below + 1, np.maximum(last, 0))
        pair = np.take_along_axis(drawn, np.stack([below, above]), axis=0)
        found.append(pair[0] + (at - below) * (pair[1] - pair[0]))
    return np.stack(found)
