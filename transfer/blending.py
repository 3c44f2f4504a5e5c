"""Which windows of a trial are predicted, and how their overlapping outputs become one response per frame.

What comes in: the frames of a trial, and of a window its frames, its stride in time and how many outputs it has; these
belong to the last of the window's frames. What goes out: a `WindowTable`: the first frame of each window, and for each
of its outputs the frame it belongs to and its weight. Rules, each by its name:

    ones         every window there is, all outputs alike: DwiseNeuro's published prediction (a window for each last
                 frame 30, ..., T - 1; a frame in the middle is the mean of 16)
    linear       as `ones`, with weights from 0 at a window's first output to 1 at its last (lRomul's other choice)
    last         only the last output of each window, before them those of the first window
    side_by_side windows whose outputs follow each other, each phase of the stride on its own: every frame once, by the
                 last window where that one, which ends with the trial, overlaps with the one before
    dynamic_vfm  windows side by side, laid so that the last 9 frames come from a window that ends the trial
                 (Dynamic-VFM: of 299 frames windows at 35, 50, ..., 260 and 269 for the frames that count)

Frames before the first window's first output have no prediction: a model of 30 frames with 15 outputs says nothing of
the first 15.
"""

from dataclasses import dataclass

import numpy as np

BLENDINGS = ("ones", "linear", "last", "side_by_side", "dynamic_vfm")
# Frames that Dynamic-VFM's last window adds: of the 249 that count 16 times 15 are covered before.
REMAINDER = 9


@dataclass(frozen=True, eq=False)
class WindowTable:
    """`starts`: int64 (windows,), ascending. `frames`: int64 (windows, outputs). `weights`: float64 (windows, outputs),
    whose sum over the outputs of a frame is 1, or 0 where the frame has none."""

    starts: np.ndarray
    frames: np.ndarray
    weights: np.ndarray

    def covered(self, frames: int) -> np.ndarray:
        """bool (frames,): which frames of the trial have a prediction."""
        return np.bincount(self.frames.ravel(), self.weights.ravel(), frames) > 0


def window_table(frames: int, window: int, stride: int, outputs: int, rule: str) -> WindowTable:
    """The windows of a trial of `frames`; those whose outputs all have weight 0 are left out.

    Raises ValueError for another rule, a window that is longer than the trial, or one with more outputs than frames.
    """
    if rule not in BLENDINGS:
        raise ValueError(f"blending: found {rule!r}, expected one of {', '.join(BLENDINGS)}")
    span = (window - 1) * stride + 1
    if span > frames:
        raise ValueError(f"a trial has {frames} frames, a window of {window} with stride {stride} needs {span}")
    if not 0 < outputs <= window:
        raise ValueError(f"a window of {window} frames has {outputs} outputs, expected 1 to {window}")
    of_window = stride * (window - outputs + np.arange(outputs))
    if rule == "dynamic_vfm":
        starts, weights = _tiled(frames, window, stride, outputs)
    elif rule == "side_by_side":
        starts, weights = _side_by_side(frames, of_window, frames - span, stride)
    else:
        starts = np.arange(frames - span + 1)
        weights = np.tile(np.linspace(0, 1, outputs) if rule == "linear" else np.ones(outputs), (len(starts), 1))
    places = starts[:, None] + of_window
    if rule == "last":
        weights[:, :-1] = 0
        weights[0] = 1
    weights = _shares(places, weights, frames)
    used = weights.any(axis=1)
    return WindowTable(starts[used], places[used], weights[used])


def _shares(places: np.ndarray, weights: np.ndarray, frames: int) -> np.ndarray:
    """Weights divided by their sum at each frame. Frames that only outputs of weight 0 reach take these alike: the
    first one of `linear`, and those of `last` that lie between the strides of the first window."""
    hits = np.bincount(places.ravel(), minlength=frames)
    total = np.bincount(places.ravel(), weights.ravel(), frames)
    missed = (hits > 0) & (total == 0)
    weights = np.where(missed[places], 1.0, weights)
    total = np.where(missed, hits, total)
    return np.divide(weights, total[places], out=np.zeros_like(weights), where=total[places] > 0)


def _side_by_side(frames: int, of_window: np.ndarray, last: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts (windows,), ascending up to `last`, and weights (windows, outputs) of 0 and 1: windows follow each other
    in each phase of the stride, and of two that reach a frame the later one has it. `of_window`: where outputs lie."""
    starts: list[int] = []
    for phase in range(min(stride, last + 1)):
        final = (last - phase) // stride
        starts += [phase + stride * number for number in (*range(0, final, len(of_window)), final)]
    places = np.sort(starts)[:, None] + of_window
    latest = np.zeros(frames, np.int64)
    for number, reached in enumerate(places):
        latest[reached] = number
    return np.sort(starts), (latest[places] == np.arange(len(places))[:, None]).astype(float)


def _tiled(frames: int, window: int, stride: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts (windows,) and weights (windows, outputs) of 0 and 1: tiles first, then what the last window has beyond
    them, then what the first one has before them. Raises ValueError for windows with gaps between their frames."""
    if stride != 1:
        raise ValueError(f"blending dynamic_vfm lays windows side by side, which needs stride 1, found {stride}")
    last, before = frames - window, window - outputs
    tiles = np.arange(last - REMAINDER % outputs, -1, -outputs)[::-1]
    starts = np.unique(np.concatenate([[0], tiles, [last]]))
    taken = np.zeros(frames, bool)
    weights = np.zeros((len(starts), outputs))
    for start in (*tiles, last, 0):
        places = slice(start + before, start + window)
        row = weights[np.searchsorted(starts, start)]
        row[~taken[places]] = 1
        taken[places] = True
    return starts, weights
