"""Dynamic Sensorium recordings: mice that saw videos (Sensorium 2023).

Comes in: a `SensoriumFolder` with videos. Goes out: a `Recording` with videos (stimuli, time, H, W), responses (trials,
neurons, time): deconvolved calcium, behavior (trials, 2, time) and pupil centre (trials, 2, time), at 30 Hz, NaN after
the end of a trial. All of it stays on disk until it is asked for.

What a window costs: files are (H, W, time) and (neurons, time) in C order and float64, 324 samples or 2.6 kB a line, so
that any window lies in every page of the file. Of 20 MB of responses all pages are touched, but only the window is
copied and converted; pages that the system has in memory cost no reading. Files whose time axis comes first in memory
(Fortran's order) are read in the window alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.clip_cache import known_clips
from neural_data.recording import Recording
from neural_data.repeated_clips import RepeatedClips, given_clips
from neural_data.sensorium_folder import SensoriumFolder, TrialPart
from neural_data.sensorium_static import BEHAVIOR
from neural_data.sensorium_tables import frame_rate, read_neurons, repeat_number, trial_columns
from neural_data.tables import trial_table
from neural_data.trial_files import TrialFiles
from neural_data.trial_length import NORMALISING, trial_frames, valid_frames
from neural_data.withheld_responses import withheld_trials
from neural_data.zip_folder import ZipFolder

FRAME_RATE_HZ = 30.0
SHAPES = {
    "videos": "(height, width, frames)",
    "responses": "(neurons, frames)",
    "behavior": "(channels, frames)",
    "pupil_center": "(2, frames)",
}


@dataclass(frozen=True)
class VideoOfTrial:
    """Reads the video of stimulus `row`, which the trial `trials[row]` shows: (time, H, W)."""

    videos: TrialPart
    trials: tuple[int, ...]
    length: int

    def __call__(self, row: int) -> np.ndarray:
        return np.moveaxis(self.videos.read(self.trials[row]), 2, 0)[: self.length]


@dataclass(frozen=True)
class TraceOfTrial:
    """Reads what was recorded in a trial until its end, (channels, time); no time where it is withheld."""

    part: TrialPart | None
    frames: np.ndarray
    channels: int

    def __call__(self, trial: int) -> np.ndarray:
        if self.part is None or self.frames[trial] == 0:
            return np.empty((self.channels, 0), np.float32)
        return self.part.read(trial)[:, : self.frames[trial]]


def read_video(
    folder: SensoriumFolder, trial_length: str, max_frames: int | None, share_stimuli: bool, cache: Path
) -> Recording:
    """The recording of one mouse; see `sensorium.read_sensorium`."""
    parts = _parts(folder)
    neurons = read_neurons(folder, parts.get("responses"))
    lines = {name: _first_lines(part) for name, part in parts.items()}
    silent = np.array([not (np.abs(line) > 0).any() for line in lines.get("responses", ())], bool)
    withheld = withheld_trials(folder, parts.get("responses"), silent)
    valid = {name: _valid(folder, parts[name], of_trials) for name, of_trials in lines.items()}
    frames = trial_frames(valid, withheld, trial_length, _statistics_frames(folder), max_frames)
    columns, identity = trial_columns(folder)
    videos, clips = parts["videos"], None
    if share_stimuli and identity is not None:
        clips = given_clips(folder, videos.read, valid["videos"], identity)
    elif share_stimuli:
        clips = known_clips(folder, videos.read, valid["videos"], lines["videos"], cache)
    stimulus, shown_by = _stimuli(folder, clips, frames)
    trials = trial_table(stimulus, repeat_number(stimulus), folder.tiers)
    valid_columns = {f"{name}_frames": of_trials for name, of_trials in valid.items()}
    if isinstance(folder.files, ZipFolder) and folder.files.deflated:
        folder.notes.append("the zip is compressed: each window costs reading its whole trial; unpack it for training")
    behavior = parts.get("behavior")
    return Recording(
        name=folder.files.name,
        stimuli=_videos(videos, shown_by, int(frames.max())),
        trials=trials.assign(frames=frames, withheld=withheld, **valid_columns).join(columns),
        responses=_traces(parts.get("responses"), len(neurons), frames, withheld),
        neurons=neurons,
        behavior=_traces(behavior, behavior.shape[0], frames) if behavior else None,
        pupil_center=_traces(parts["pupil_center"], 2, frames) if "pupil_center" in parts else None,
        sampling_rate_hz=frame_rate(folder, FRAME_RATE_HZ),
        statistics=folder.statistics,
        source=folder.files.path,
        behavior_names=BEHAVIOR.get(behavior.shape[0], ()) if behavior else (),
        notes=tuple(folder.notes),
    )


def _videos(videos: TrialPart, shown_by: tuple[int, ...], length: int) -> TrialFiles:
    shape = (len(shown_by), length, *videos.shape[:2])
    return TrialFiles(VideoOfTrial(videos, shown_by, length), shape, time_axis=0)


def _traces(
    part: TrialPart | None, channels: int, frames: np.ndarray, withheld: np.ndarray | None = None
) -> TrialFiles:
    until = frames if withheld is None else np.where(withheld, 0, frames)
    return TrialFiles(TraceOfTrial(part, until, channels), (len(frames), channels, int(frames.max())))


def _parts(folder: SensoriumFolder) -> dict[str, TrialPart]:
    """The modalities that there are, with shapes that agree."""
    parts = {name: part for name in SHAPES if (part := folder.part(name)) is not None}
    for name, part in parts.items():
        fits = len(part.shape) == SHAPES[name].count(",") + 1 and (name != "pupil_center" or part.shape[0] == 2)
        part.check_shapes(SHAPES[name], fits, time_last=True)
    absent = [name for name in ("behavior", "pupil_center") if folder.unless_zero(parts.get(name)) is None]
    return {name: part for name, part in parts.items() if name not in absent}


def _first_lines(part: TrialPart) -> list[np.ndarray]:
    """What each trial has over time in the first neuron, pixel or channel; nothing where there is no file."""
    return [part.folder.first_line(file) if file else np.empty(0) for file in part.files]


def _valid(folder: SensoriumFolder, part: TrialPart, lines: list[np.ndarray]) -> np.ndarray:
    """Valid frames of a modality in each trial, -1 where there is no file. Raises ValueError for a trial of NaN."""
    frames = np.array([valid_frames(line) if file else -1 for line, file in zip(lines, part.files, strict=True)])
    empty = np.flatnonzero(frames == 0)
    if len(empty):
        raise folder.files.wrong(part.files[empty[0]], "NaN in the first frame", "numbers, and NaN only after the end")
    resumed = [trial for trial, line in enumerate(lines) if not np.isnan(line[frames[trial] :]).all()]
    if resumed:
        some = f"in {len(resumed)} trials, such as {resumed[0]}"
        folder.notes.append(f"{part.name} go on after a gap of NaN {some}: they end at the gap")
    return frames


def _statistics_frames(folder: SensoriumFolder) -> int | None:
    """Frames of the shortest per-frame statistics that normalising uses."""
    files = [f"meta/statistics/{name}.npy" for name in NORMALISING]
    there = [file for file in files if file in folder.files.files and len(folder.files.header(file).shape) > 1]
    return min((valid_frames(folder.files.first_line(file)) for file in there), default=None)


def _stimuli(
    folder: SensoriumFolder, clips: RepeatedClips | None, frames: np.ndarray
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which stimulus each trial shows, int64 (trials,), and the trial whose file has the video of each stimulus: of
    the trials of a clip the first of the longest."""
    n = len(frames)
    if clips is None:
        folder.notes.append("which trials repeat a clip was not looked up: each is a stimulus of its own")
        return np.arange(n), tuple(range(n))
    folder.notes += clips.notes
    # A trial without a clip gets a number of its own, below zero.
    stimulus, _ = pd.factorize(np.where(clips.clip < 0, -1 - np.arange(n), clips.clip))
    order = np.lexsort((np.arange(n), -frames, stimulus))
    shown_by = order[np.unique(stimulus[order], return_index=True)[1]]
    return stimulus, tuple(shown_by.tolist())
