"""Noise ceilings of several clips whose frames are the stimuli.

Comes in: of each clip, responses (repeats, frames, neurons), with its own numbers of repeats and frames. Goes out: the
mean of an estimate over clips, or the clips one after the other for one estimate of all.

The mean over clips is that of ViV1T-CL (see docs/noise_ceilings.md); it leaves out differences between clips. One
estimate of the pooled frames holds them, is steadier, and has an interval (`bootstrap_interval` with
`clip_of_stimulus`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neural_data.stimulus_moments import ratio


def mean_over_clips(
    estimate: Callable[..., np.ndarray],
    responses: Sequence[np.ndarray],
    *predictions: Sequence[np.ndarray],
    **options: Any,
) -> np.ndarray:
    """Mean (neurons,) of `estimate(responses, *predictions, **options)` over the clips where it is defined.

    Every argument is a list with one array per clip. NaN where no clip is defined. Raises ValueError for lists of
    unequal lengths, and as the estimate does.
    """
    each = np.stack([estimate(*clip, **options) for clip in _by_clip(responses, *predictions)])
    defined = ~np.isnan(each)
    return ratio(np.where(defined, each, 0.0).sum(axis=0), defined.sum(axis=0))


def pool_clips(responses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All frames one after the other: float64 (most repeats, frames, neurons), NaN where a clip has fewer repeats; and
    the clip of each frame, int64 (frames,). Predictions (repeats, frames, neurons) are pooled the same way.

    Raises ValueError for clips with other numbers of neurons.
    """
    clips = _by_clip(responses)
    shapes = [clip.shape for (clip,) in clips]
    if any(len(shape) != 3 for shape in shapes) or len({shape[2] for shape in shapes}) != 1:
        raise ValueError(f"clips must be (repeats, frames, neurons) with the same neurons, found shapes {shapes[:5]}")
    frames = [shape[1] for shape in shapes]
    pooled = np.full((max(shape[0] for shape in shapes), sum(frames), shapes[0][2]), np.nan)
    for (clip,), end in zip(clips, np.cumsum(frames), strict=True):
        pooled[: len(clip), end - clip.shape[1] : end] = clip
    return pooled, np.repeat(np.arange(len(frames)), frames)


def _by_clip(*arguments: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    lengths = [len(argument) for argument in arguments]
    if not lengths[0] or len(set(lengths)) != 1:
        raise ValueError(f"responses and predictions must be lists with one array per clip, found lengths {lengths}")
    return list(zip(*arguments, strict=True))
