"""Which trials show the same clip, which the folders of Sensorium 2023 do not say: recovered by comparing videos.

Comes in: the videos of a mouse, one (H, W, frames) per trial, grey levels. Goes out: the number of the clip that each
trial shows, int64 (trials,), -1 for trials of tier "none": what ViV1T-closed-loop ships as `video_ids`, by its rule.
Two clips are the same if in more than 85 % of the frames all pixels agree within one grey level. Trials are taken in
order; clips of tier train are all new, any other trial shows the first clip before it that is the same.

(ViV1T compares arrays with their padding, which counts as frames that agree; here the share is of the longer clip's
valid frames. With 300 of 324 frames that is 85 % instead of 83.8 %.)

Fast: of a file only a grid of 36 pixels is read, each over all frames, since these lie together on disk. Clips that
are the same agree there too, so that nothing is missed, and only such pairs are compared as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from neural_data.sensorium_folder import SensoriumFolder

SAME_GREY = 1.0
SAME_SHARE = 0.85
GRID = 6  # pixels along each side
SAMPLED_CLIPS = 4  # pairs compared where the source itself says which clips are the same
# The grid is compared in float32, whose rounding must not lose a pair that agrees to the last digit.
ROUNDING = 1e-3

# read(trial, scattered): the video of a trial (H, W, frames) or longer, and whether only few pixels are looked at.
Read = Callable[[int, bool], np.ndarray]


@dataclass(frozen=True, eq=False)
class RepeatedClips:
    """`clip`: int64 (trials,), -1 for none. `agreement`: float64 (trials,), the share of frames that agree with the
    clip's first trial, NaN for none. `notes`: for people."""

    clip: np.ndarray
    agreement: np.ndarray
    notes: list[str] = field(default_factory=list)


def repeated_clips(read: Read, frames: np.ndarray, tiers: np.ndarray) -> RepeatedClips:
    """The clip of each trial. `frames`: valid ones of each video, int64 (trials,)."""
    clip, agreement = np.full(len(tiers), -1), np.full(len(tiers), np.nan)
    first_trial: list[int] = []
    bank = _Bank(len(tiers), int(frames.max()))
    for trial in np.flatnonzero(tiers != "none"):
        sample = grid_of_pixels(read(trial, True)[..., : frames[trial]])
        for number in bank.alike(sample) if tiers[trial] != "train" else ():
            other = first_trial[number]
            first, second = (read(which, False)[..., : frames[which]] for which in (other, trial))
            share = same_share(first, second)
            if share > SAME_SHARE:
                clip[trial], agreement[trial] = number, share
                break
        else:
            clip[trial], agreement[trial] = len(first_trial), 1.0
            first_trial.append(trial)
            bank.add(sample)
    return RepeatedClips(clip, agreement)


def same_share(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the longer clip's frames in which all pixels of two clips (H, W, frames) agree within SAME_GREY."""
    n, longer = sorted((first.shape[-1], second.shape[-1]))
    wide = np.result_type(first.dtype, second.dtype, np.float32)
    apart = np.subtract(first[..., :n], second[..., :n], dtype=wide)
    return float((np.abs(apart, out=apart).max(axis=(0, 1)) <= SAME_GREY).sum() / longer)


def grid_of_pixels(video: np.ndarray) -> np.ndarray:
    """float32 (frames, pixels) of a video (H, W, frames): a grid of GRID x GRID pixels, those of the centre first."""
    y, x = (np.unique(((np.arange(GRID) + 0.5) * size / GRID).astype(int)) for size in video.shape[:2])
    rows, columns = (grid.ravel() for grid in np.meshgrid(y, x, indexing="ij"))
    from_centre = np.abs(rows - y.mean()) / video.shape[0] + np.abs(columns - x.mean()) / video.shape[1]
    order = np.argsort(from_centre, kind="stable")
    return np.asarray(video[rows[order], columns[order]].T, np.float32)


class _Bank:
    """Grids of pixels of the clips so far; of all of them four pixels are compared, of those alike the rest."""

    def __init__(self, most: int, length: int) -> None:
        self.most, self.length, self.count = most, length, 0
        self.frames = np.zeros(most, np.int64)
        self.centre = self.all = np.empty((0, 0, 0), np.float32)

    def add(self, sample: np.ndarray) -> None:
        if not self.count:
            # Without frames there is NaN, which agrees with nothing.
            self.centre = np.full((self.most, self.length, min(4, sample.shape[1])), np.nan, np.float32)
            self.all = np.full((self.most, self.length, sample.shape[1]), np.nan, np.float32)
        self.centre[self.count, : len(sample)] = sample[:, :4]
        self.all[self.count, : len(sample)] = sample
        self.frames[self.count] = len(sample)
        self.count += 1

    def alike(self, sample: np.ndarray) -> np.ndarray:
        """Numbers of the clips that may be the same, in order."""
        some = np.arange(self.count)
        for bank in (self.centre, self.all):
            if len(some):
                banked = bank[: self.count] if len(some) == self.count else bank[some]
                near = np.abs(banked[:, : len(sample)] - sample[:, : bank.shape[2]]) <= SAME_GREY + ROUNDING
                share = near.all(axis=2).sum(axis=1) / np.maximum(self.frames[some], len(sample))
                some = some[share > SAME_SHARE]
        return some


def given_clips(folder: SensoriumFolder, read: Read, frames: np.ndarray, identity: np.ndarray) -> RepeatedClips:
    """Clips as the source names them, int or text (trials,), negative for none. Raises ValueError where of a few that
    are said to be the same, two are not."""
    clip, names = pd.factorize(identity)
    if identity.dtype.kind in "if":
        clip = np.where(identity < 0, -1, clip)
    first = {number: trial for trial, number in reversed(list(enumerate(clip))) if number >= 0}
    repeats = [trial for trial, number in enumerate(clip) if number >= 0 and first[number] != trial]
    for trial in repeats[:: max(1, len(repeats) // SAMPLED_CLIPS)]:
        other = first[clip[trial]]
        first_video, video = (read(which, False)[..., : frames[which]] for which in (other, trial))
        if not same_share(first_video, video) > SAME_SHARE:
            raise folder.files.wrong(
                f"data/videos/{trial}.npy",
                f"another clip than in data/videos/{other}.npy, though meta/trials says both are {names[clip[trial]]}",
                "equal ones; share_stimuli=False gives each trial its own",
            )
    return RepeatedClips(clip, np.where(clip < 0, np.nan, 1.0))
