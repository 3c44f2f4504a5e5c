"""Which frames of a trial a model is shown: pure functions of lengths and of numbers drawn elsewhere.

What comes in: the length of trials in frames as recorded, a plan, and of random windows one number in [0, 1) each. What
goes out: the first frame of each window, and the original numbers of its frames.

A window of `frames` frames with `stride` lies over (frames - 1) * stride + 1 frames of the recording: 31 for the 16
frames with stride 2 of DwiseNeuro at 30 Hz. Random windows begin anywhere from the first frame to the last that leaves
room, all with the same probability, as in DwiseNeuro; the loaders of ecker-lab and Dynamic-VFM never use the last one.
"""

from dataclasses import dataclass

import numpy as np

SAMPLINGS = ("random", "dense", "whole")


@dataclass(frozen=True)
class WindowPlan:
    """How trials become windows.

    `frames`: of a window as the model sees it; 0 is the whole trial, and images. `stride`: frames as recorded from one
    to the next. `sampling`: "random", one window of each trial; "dense", windows side by side, the last one up to the
    trial's end, such that every frame between is in one (DwiseNeuro's validation); "whole", the trial from its first
    frame to its last, as long as it is, whatever `frames` says.
    """

    frames: int = 0
    stride: int = 1
    sampling: str = "random"

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"window sampling: found {self.sampling!r}, expected one of {', '.join(SAMPLINGS)}")
        if self.frames < 0 or self.stride < 1:
            raise ValueError(f"window: found {self.frames} frames with stride {self.stride}, expected 0 or more and 1")

    @property
    def whole(self) -> bool:
        """Whether a sample is a whole trial."""
        return self.sampling == "whole" or self.frames == 0

    @property
    def span(self) -> int:
        """Frames as recorded that a window lies over; 0 for whole trials."""
        return 0 if self.whole else (self.frames - 1) * self.stride + 1

    def samples(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What one pass over trials of `lengths` (trials,) is made of: int64 (samples,), which trial, and the window's
        first frame, -1 where it is drawn anew each time."""
        if self.whole:
            return np.arange(len(lengths)), np.zeros(len(lengths), np.int64)
        if self.sampling == "random":
            return np.arange(len(lengths)), np.full(len(lengths), -1)
        starts = [dense_starts(int(length), self.span) for length in lengths]
        trial = np.repeat(np.arange(len(lengths)), [len(of_trial) for of_trial in starts])
        return trial, np.concatenate([np.empty(0, np.int64), *starts])

    def start(self, lengths: np.ndarray, starts: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """First frames, int64: those in `starts`, or where they are -1, random ones by `drawn`, float in [0, 1).

        Trials shorter than a window begin at their first frame.
        """
        room = np.maximum(lengths - self.span, 0) + 1
        return np.where(starts >= 0, starts, np.minimum((drawn * room).astype(np.int64), room - 1))

    def numbers(self, start: int, length: int) -> np.ndarray:
        """Original frame numbers, int64, of a window that begins at `start`, those that the trial has."""
        stop = length if self.whole else min(start + self.span, length)
        return np.arange(start, stop, self.stride)


def dense_starts(length: int, span: int, hop: int | None = None) -> np.ndarray:
    """First frames, int64, of windows of `span` frames, `hop` apart (default: side by side), over `length` frames.

    The last window ends with the trial, so that the end is seen too; a trial shorter than a window has one.
    """
    hop = span if hop is None else hop
    if span < 1 or hop < 1:
        raise ValueError(f"windows: found a span of {span} and a hop of {hop} frames, expected 1 or more")
    starts = np.arange(0, max(length - span, 0) + 1, hop)
    last = max(length - span, 0)
    return starts if starts[-1] == last else np.append(starts, last)
