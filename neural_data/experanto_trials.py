"""Trials of an experanto screen as the trials of a `Recording`: what was shown, and what was recorded meanwhile.

Comes in: the screen, its trials of one kind, responses and signals. Goes out: the parts of a recording that have an
axis of trials, by name. Stimuli and responses stay in their files until a trial is asked for.

Trials during which responses were not recorded are left out. What repeats the same stimulus is not in the files: it is
found by comparing them.
"""

from collections.abc import Sequence as Listed
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from neural_data.experanto_devices import Sequence, Spikes
from neural_data.experanto_screen import Screen, ScreenTrial
from neural_data.experanto_signals import Signals
from neural_data.identical_files import identical_files, longest_versions
from neural_data.tables import trial_table
from neural_data.trial_files import TrialFiles

# Frame rates that differ by less are one rate: screens jitter and drop frames.
SAME_RATE = 0.05
# Columns of text in the table of trials, and what the field is called in a trial's file.
TEXT_COLUMNS = {"stimulus_name": "stimulus_name", "stimulus_class": "stim_type", "condition_hash": "condition_hash"}


@dataclass(frozen=True, eq=False)
class SampledVideo:
    """A video at one sample per time of `times_s`: those `frames` of its file, or simply all where that is None."""

    trial: ScreenTrial
    times_s: np.ndarray
    frames: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """(samples, height, width[, channels])"""
        return self.trial.read() if self.frames is None else self.trial.read()[self.frames]


@dataclass(frozen=True, eq=False)
class ResponsesAt:
    """Responses at times; `rate_hz` is that of the times, for which spikes are counted."""

    device: Sequence | Spikes
    rate_hz: float
    interpolation: str

    def recorded(self, times_s: np.ndarray) -> bool:
        """Whether there is a sample for each of the times."""
        if isinstance(self.device, Spikes):
            return bool(self.device.covers(times_s, times_s + 1 / self.rate_hz).all())
        return bool(self.device.valid(times_s, self.interpolation).all())

    def read(self, times_s: np.ndarray) -> np.ndarray:
        """(neurons, times)"""
        if isinstance(self.device, Spikes):
            return self.device.at(times_s, 1 / self.rate_hz, "left")[0].T
        return self.device.at(times_s, self.interpolation)[0].T


@dataclass(frozen=True, eq=False)
class TrialResponses:
    """Array-like (neurons, times) of one trial, of which a window in time is read without the rest."""

    responses: ResponsesAt
    times_s: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.responses.device.shape[1], len(self.times_s)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, slice) for part in key):
            return self.responses.read(self.times_s[key[1]])[key[0]]
        return np.asarray(self)[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.responses.read(self.times_s), dtype)


def image_parts(
    screen: Screen,
    responses: Sequence | Spikes,
    signals: Signals,
    trials: Listed[ScreenTrial],
    window_s: tuple[float, float],
) -> dict[str, Any]:
    """Images, with one response each: the average (of spikes, the count) in a window of seconds from onset.

    Signals are averaged over the same window. Images whose window the responses do not cover are left out.
    """
    onset = np.array([screen.times_s(trial)[0] for trial in trials])
    covered = np.flatnonzero(responses.covers(onset + window_s[0], onset + window_s[1]))
    _check_any(screen, responses, len(covered))
    trials, onset = [trials[row] for row in covered], onset[covered]
    start, stop = onset + window_s[0], onset + window_s[1]
    stimulus, first, dtype = _stimuli(trials)
    images = [trials[row] for row in first]
    return {
        "stimuli": TrialFiles(partial(_image, images), (len(images), *_size(trials)), dtype),
        "trials": _table(screen, trials, stimulus),
        "responses": TrialFiles(partial(_window, responses, start, stop), (len(trials), responses.shape[1])),
        "response_start_ms": 1000 * window_s[0],
        **signals.parts(signals.windows(start, stop)),
    }


def video_parts(
    screen: Screen,
    responses: ResponsesAt,
    signals: Signals,
    videos: Listed[SampledVideo],
    response_start_s: float,
) -> dict[str, Any]:
    """Videos, with one sample of responses and signals per sample of the video.

    Responses are taken `response_start_s` later than each frame, signals at its time. Videos that lack a sample of the
    responses are left out.
    """
    videos = [video for video in videos if responses.recorded(video.times_s + response_start_s)]
    _check_any(screen, responses.device, len(videos))
    trials = [video.trial for video in videos]
    frames = np.array([len(video.times_s) for video in videos], np.int64)
    stimulus, longest, dtype = _stimuli(trials, [None if v.frames is None else v.frames.tobytes() for v in videos])
    shown, length = [videos[row] for row in longest], int(frames.max())
    if (frames[longest] < length).any():
        # Shorter videos end in NaN, which whole numbers do not have.
        dtype = np.result_type(dtype, np.float32)
    # At no time there is nothing: trials that are shorter end in NaN.
    times = np.full((len(videos), length), np.nan)
    for row, video in enumerate(videos):
        times[row, : frames[row]] = video.times_s
    read = partial(_responses, responses, times + response_start_s)
    return {
        "stimuli": TrialFiles(partial(_video, shown), (len(shown), length, *_size(trials)), dtype, time_axis=0),
        "trials": _table(screen, trials, stimulus).assign(frames=frames),
        "responses": TrialFiles(read, (len(videos), responses.device.shape[1], length)),
        "response_start_ms": 1000 * response_start_s,
        "sampling_rate_hz": responses.rate_hz,
        **signals.parts(np.stack([signals.at(trial, responses.interpolation) for trial in times])),
    }


def sample_videos(
    screen: Screen, trials: Listed[ScreenTrial], rate_hz: float | None
) -> tuple[list[SampledVideo], float, list[str]]:
    """Videos as they are sampled, the rate in Hz, and notes of those that were shown at another.

    At the rate of the screen each frame is one sample, at the time when it was shown. Otherwise samples are on a
    regular grid from onset, and each is the frame that a screen without jitter would have shown then. `rate_hz`: by
    default that of the fastest videos. Raises ValueError where no rate can be told.
    """
    own = _frame_rates(screen, trials)
    rate = rate_hz or _fastest(screen, own)
    videos, others = [], []
    for trial, shown_at in zip(trials, own, strict=True):
        times = screen.times_s(trial)
        if not abs(shown_at / rate - 1) > SAME_RATE:
            videos.append(SampledVideo(trial, times))
            continue
        samples = np.arange(max(1, round(trial.frames / shown_at * rate)))
        frames = np.minimum((samples * (shown_at / rate) + 1e-6).astype(np.int64), trial.frames - 1)
        videos.append(SampledVideo(trial, times[0] + samples / rate, frames))
        others.append(f"{shown_at:.3g}")
    counts = pd.Series(others, dtype=str).value_counts(sort=False)
    notes = [f"{n} videos shown at {shown_at} Hz are sampled at {rate:g} Hz" for shown_at, n in counts.items()]
    return videos, rate, notes


def _frame_rates(screen: Screen, trials: Listed[ScreenTrial]) -> np.ndarray:
    """Frames per second of each trial, float64; rates that are nearly the same are made one.

    A single frame has the fastest rate of the others, NaN where there is no other.
    """
    steps = [np.diff(screen.times_s(trial)) for trial in trials]
    own = np.array([1 / np.median(step) if len(step) else np.nan for step in steps])
    order = np.argsort(own)
    ascending = own[order]
    group = np.concatenate([[0], np.cumsum(np.diff(ascending) > SAME_RATE * ascending[:-1])])
    own[order] = pd.Series(ascending).groupby(group).transform("median")
    return own


def _fastest(screen: Screen, own: np.ndarray) -> float:
    said = screen.meta.number("frame_rate", np.nan)
    fastest = np.nan if np.isnan(own).all() else float(np.nanmax(own))
    if np.isnan(fastest) and np.isnan(said):
        raise screen.meta.wrong("frame_rate", "frames per second, since no video has two frames; or give rate_hz")
    # What the file says is exact, but may be the refresh rate of the monitor.
    return round(fastest, 3) if abs(said / fastest - 1) > SAME_RATE or np.isnan(said) else said


def _check_any(screen: Screen, responses: Sequence | Spikes, covered: int) -> None:
    if not covered:
        clocks = [f"{start:.3f} to {end:.3f} s" for start, end in (responses.interval_s, screen.interval_s)]
        raise ValueError(
            f"{responses.folder}: found responses from {clocks[0]}, expected them during at least one whole trial "
            f"of the screen, which is on from {clocks[1]}"
        )


def _stimuli(
    trials: Listed[ScreenTrial], sampling: Listed[Any] | None = None
) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Stimulus of each trial, numbered by first appearance; a trial that shows each as a whole; the type of all files.

    A video that is the start of another is that one, cut short: screens lose frames. `sampling`: what tells apart how
    the same video is sampled. Opens all files that differ, so that one of another shape than said is told here.
    """
    files = identical_files([trial.file for trial in trials])
    frames = np.array([trial.frames for trial in trials])
    differ = np.unique(np.stack([files, frames]), axis=1, return_index=True)[1]
    dtype = np.result_type(*{trials[row].read().dtype for row in differ})
    if trials[0].modality == "video":
        first = np.unique(files, return_index=True)[1]
        files = longest_versions([trials[row].file for row in first])[files]
    keys = list(zip(files.tolist(), sampling or [None] * len(trials), strict=True))
    stimulus = pd.factorize(pd.Series(keys, dtype=object))[0].astype(np.int64)
    return stimulus, pd.Series(frames).groupby(stimulus).idxmax().to_numpy(), dtype


def _size(trials: Listed[ScreenTrial]) -> tuple[int, ...]:
    size = trials[0].image_size
    for trial in trials:
        if trial.image_size != size:
            raise trial.meta.wrong("image_size", f"{list(size)} as in {trials[0].meta.path.name}")
    return size


def _table(screen: Screen, trials: Listed[ScreenTrial], stimulus: np.ndarray) -> pd.DataFrame:
    repeat = pd.Series(stimulus).groupby(stimulus).cumcount().to_numpy()
    table = trial_table(stimulus, repeat, [trial.meta.text("tier", "") for trial in trials])
    onset = np.array([screen.times_s(trial)[0] for trial in trials])
    table = table.assign(start_s=onset - screen.timestamps_s[0], trial_id=[trial.name for trial in trials])
    there = {field for trial in trials for field, value in trial.meta.fields.items() if value is not None}
    for column, field in TEXT_COLUMNS.items():
        if field in there:
            table[column] = pd.Series([trial.meta.text(field, "") for trial in trials], dtype="str")
    for column, default in (("valid_trial", True), ("withheld", False)):
        if column in there:
            table[column] = [trial.meta.flag(column, default) for trial in trials]
    return table


# Functions, not closures: what they make can be handed to other processes.
def _image(images: Listed[ScreenTrial], row: int) -> np.ndarray:
    return images[row].read()[0]


def _video(videos: Listed[SampledVideo], row: int) -> np.ndarray:
    return videos[row].read()


def _responses(responses: ResponsesAt, times_s: np.ndarray, row: int) -> TrialResponses:
    return TrialResponses(responses, times_s[row])


def _window(responses: Sequence | Spikes, start_s: np.ndarray, stop_s: np.ndarray, row: int) -> np.ndarray:
    return responses.windows(start_s[row : row + 1], stop_s[row : row + 1])[0]
