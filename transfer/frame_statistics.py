"""Statistics of trials, gathered one trial at a time: per frame, over time, or over everything.

What comes in: trials of one modality, each with a time axis, shorter ones too. What goes out: mean, standard deviation
(ddof 0), minimum and maximum across trials of every element, per frame as the folders of Sensorium 2023 have them; or
of these over time as well, as ViV1T's own ("time") are; or one number over everything.

No more than one trial is held besides the sums. Moments are updated as by Welford (Technometrics 4:419, 1962) and put
together over time as by Chan et al. (Am. Stat. 37:242, 1983), so that nothing cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neural_data.recording import Recording

STIMULI = ("video", "images")


@dataclass(frozen=True)
class Moments:
    """float64 arrays of one shape, NaN where there was no trial."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray


class FrameStatistics:
    """Of arrays with `time_axis` (0 or -1), at most as long as `shape` says."""

    def __init__(self, shape: Sequence[int], time_axis: int) -> None:
        self.time_axis = time_axis % len(shape)
        self.count = np.zeros(shape[self.time_axis], np.int64)
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)
        self.min, self.max = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Take another trial into account. Raises ValueError where it holds NaN."""
        length = values.shape[self.time_axis]
        part = (slice(None),) * self.time_axis + (slice(length),)
        values = values.astype(float)
        self.count[:length] += 1
        mean = self.mean[part]
        apart = values - mean
        mean += apart / self._along_time(self.count[:length])
        if np.isnan(mean).any():
            raise ValueError("NaN before the end of the trial")
        apart *= values - mean
        self.squares[part] += apart
        for bound, extreme in ((self.min[part], np.minimum), (self.max[part], np.maximum)):
            extreme(bound, values, out=bound)

    def per_frame(self) -> Moments:
        """Of each element at each frame, across trials."""
        count = self._along_time(np.where(self.count > 0, self.count, np.nan))
        mean, low, high = (np.where(count > 0, values, np.nan) for values in (self.mean, self.min, self.max))
        return Moments(mean, np.sqrt(self.squares / count), low, high)

    def over_time(self) -> Moments:
        """Of each element, across trials and frames."""
        return self._over(self.time_axis)

    def over_all(self) -> Moments:
        """One number of all elements, trials and frames."""
        return self._over(tuple(range(self.mean.ndim)))

    def _over(self, axes: int | tuple[int, ...]) -> Moments:
        count = np.broadcast_to(self._along_time(self.count), self.mean.shape)
        total = count.sum(axis=axes)
        mean = (count * self.mean).sum(axis=axes) / total
        apart = self.mean - (np.expand_dims(mean, axes))
        variance = (self.squares + count * apart**2).sum(axis=axes) / total
        return Moments(mean, np.sqrt(variance), self.min.min(axis=axes), self.max.max(axis=axes))

    def _along_time(self, values: np.ndarray) -> np.ndarray:
        return values.reshape([-1 if axis == self.time_axis else 1 for axis in range(self.mean.ndim)])


def frame_statistics(
    recording: Recording, rows: np.ndarray, parts: Sequence[str], max_frames: int | None = None
) -> dict[str, FrameStatistics]:
    """Statistics of "video" or "images", "responses", "behavior" and "pupil_center" over some trials, each read once.

    Parts that the recording has not are left out. Video is (time, height, width[, channels]), all else (channels,
    time); images and what goes with them count as one frame. `max_frames`: only the beginning of trials counts.
    Raises ValueError where there is no trial, or one holds NaN.
    """
    rows = np.asarray(rows, np.int64)
    if not len(rows):
        raise ValueError(f"{recording.name}: no trials to compute statistics of")
    frames = recording.frames if max_frames is None else np.minimum(recording.frames, max_frames)
    found: dict[str, FrameStatistics] = {}
    for row in rows.tolist():
        for part in parts:
            values = part_of_trial(recording, part, row, int(frames[row]))
            if values is None:
                continue
            axis = 0 if part in STIMULI else -1
            if part not in found:
                shape = list(values.shape)
                shape[axis] = frames[rows].max()
                found[part] = FrameStatistics(shape, axis)
            try:
                found[part].add(values)
            except ValueError as error:
                raise ValueError(f"{recording.name}: {part} of trial {row}: {error}") from None
    return found


def part_of_trial(recording: Recording, part: str, row: int, frames: int) -> np.ndarray | None:
    """One modality of a trial with its time axis, of one frame where it has none; None where the recording lacks it."""
    if part in STIMULI:
        if recording.video != (part == "video"):
            return None
        stimulus = int(recording.trials["stimulus"].iat[row])
        return np.asarray(recording.stimuli[stimulus, :frames] if recording.video else recording.stimuli[[stimulus]])
    stored = getattr(recording, part)
    if stored is None:
        return None
    return np.asarray(stored[row, :, :frames] if len(stored.shape) == 3 else stored[row][:, None])
