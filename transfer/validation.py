"""How well an encoder predicts the validation trials of each animal, while it is fitted.

What comes in: an encoder in evaluation mode, recordings and the rows that measure. What goes out: the single-trial
correlation of every animal, mean over its neurons, and the mean over animals, in the space in which the encoder
predicts. Trials are predicted whole: where the encoder sees windows, by windows side by side, so that each frame is
predicted once and frames at the start that no window predicts do not count. One trial is held at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from neural_data.recording import Recording
from transfer.normalisation import Normalisation
from transfer.streamed_correlation import StreamedCorrelation

MEASURE = "single_trial_correlation"


def windows_side_by_side(length: int, frames: int, stride: int, outputs: int) -> np.ndarray:
    """Windows, int64 (windows, frames), of which the last `outputs` frames of each cover a trial without gaps.

    With a stride every phase is covered on its own. The last window ends with the trial, so that it may predict anew
    what the one before has; frames before the first window's outputs are covered by none. `frames` 0: the trial itself.
    Raises ValueError where the trial is shorter than a window.
    """
    if not frames:
        return np.arange(length)[None]
    span = (frames - 1) * stride + 1
    if span > length:
        raise ValueError(f"a trial has {length} frames, fewer than a window, which spans {span}")
    windows = []
    for phase in range(min(stride, length - span + 1)):
        last = (length - 1 - phase - (span - 1)) // stride
        starts = [*range(0, last, outputs), last]
        windows += [phase + stride * (start + np.arange(frames)) for start in starts]
    return np.stack(windows)
