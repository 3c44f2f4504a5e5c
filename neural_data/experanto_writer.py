"""Writes a recording in experanto's format, file by file as the published ones are laid out.

Comes in: a `Recording` of one animal, of videos with responses in time or images with one response each. Goes out: a
folder that `read_experanto` gives back: `meta.json`; `screen/` with a clock of frames and a file of pixels and one of
metadata per trial; `responses/`, `eye_tracker/` and `treadmill/` as sequences on a regular grid, with their statistics.

A recording does not say when trials were shown, so they follow each other, with blanks between. A video's samples are
those of the grid, and nothing was recorded in blanks: they are NaN. The response to an image holds until the next
onset, so that any window in between has that average.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from neural_data.experanto import IMAGE_WINDOW_MS
from neural_data.experanto_signals import CENTER, PUBLISHED
from neural_data.experanto_trials import TEXT_COLUMNS
from neural_data.recording import Recording
from neural_data.tables import POSITION_COLUMNS
from neural_data.whole_folder import whole_folder

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
GREY = 128.0  # pixel value of blanks, as in the published recordings


@dataclass(frozen=True)
class Timeline:
    """When trials are shown, in samples of the grid from its start.

    `onset`, `shown`: int64 (trials,), when a trial comes on and how long it stays. `held`: int64 (trials,), how long
    the responses and signals are its own. `blank`: length of the blank before each trial; another ends the recording.
    """

    rate_hz: float
    start_s: float
    onset: np.ndarray
    shown: np.ndarray
    held: np.ndarray
    blank: int
    end: int

    def times_s(self, samples: np.ndarray) -> np.ndarray:
        return self.start_s + samples / self.rate_hz


def write_experanto(
    recording: Recording,
    folder: str | Path,
    memmap: bool = False,
    blank_ms: float = 500.0,
    image_ms: float = 500.0,
    image_rate_hz: float = 30.0,
    start_s: float = 0.0,
) -> Path:
    """Writes the folder, which must be new or empty, such that `read_experanto` gives the recording back.

    `memmap`: sequences as `data.mem` instead of `data.npy`. `blank_ms`: between trials, rounded to samples, 0 for none.
    `image_ms`, `image_rate_hz`: how long images last, and the rate of their responses. `start_s`: the clock's first
    time. What comes back: stimuli, responses, pupil and behavior (as float32), neurons, tiers and columns of trials
    that experanto has a field for. Stimuli are numbered and repeats counted by first appearance; stimuli that are never
    shown are gone; name, `start_s` and `trial_id` are those of the new folder; statistics are computed anew, and
    behavior without a name gets one. A `response_start_ms` of videos must be given again when they are read.

    Written beside the folder first and renamed, so that a folder of that name is always whole. Raises ValueError where
    the format cannot hold the recording.
    """
    _check(recording)
    timeline = _timeline(recording, blank_ms, image_ms, image_rate_hz, start_s)
    with whole_folder(Path(folder)) as unfinished:
        (unfinished / "meta.json").write_text(json.dumps({"data_key": recording.animals[0]}), encoding="utf-8")
        lag_s = recording.response_start_ms / 1000 if recording.video else 0.0
        responses = SequenceFile(unfinished / "responses", timeline, len(recording.neurons), memmap, lag_s)
        groups = _signal_groups(recording)
        signals = {name: SequenceFile(unfinished / name, timeline, len(groups[name]), memmap) for name in groups}
        screen = ScreenFiles(unfinished / "screen", timeline)
        for row in range(len(recording.trials)):
            trial = recording.trial(row)
            screen.put(row, trial["video"] if recording.video else trial["images"][None], _trial_fields(recording, row))
            responses.put(row, trial["responses"])
            values = _named_signals(recording, trial)
            for name, names in groups.items():
                signals[name].put(row, np.stack([values[signal] for signal in names]))
        screen.finish()
        responses.finish(neuron_properties=_write_neurons(recording, unfinished / "responses"))
        for name, names in groups.items():
            signals[name].finish(signal_names=list(names))
    return Path(folder)


class SequenceFile:
    """One device of modality sequence that is filled trial by trial; what no trial fills is NaN."""

    def __init__(self, folder: Path, timeline: Timeline, signals: int, memmap: bool, lag_s: float = 0.0) -> None:
        (folder / "meta").mkdir(parents=True)
        self.folder, self.timeline, self.memmap, self.lag_s = folder, timeline, memmap, lag_s
        shape = (timeline.end, signals)
        if memmap:
            self.data = np.memmap(folder / "data.mem", np.float32, "w+", shape=shape)
        else:
            self.data = np.lib.format.open_memmap(folder / "data.npy", "w+", np.float32, shape)
        self.data[:] = np.nan
        self.moments = Moments(np.zeros(signals), np.zeros(signals), np.zeros(signals))

    def put(self, row: int, values: np.ndarray) -> None:
        """The values of a trial (signals,), or (signals, samples)."""
        onset, held = self.timeline.onset[row], self.timeline.held[row]
        samples = np.broadcast_to(values.T if values.ndim == 2 else values, (held, self.data.shape[1]))
        self.data[onset : onset + held] = samples
        self.moments.add(samples)

    def finish(self, **fields: Any) -> None:
        self.data.flush()
        start = self.timeline.start_s + self.lag_s
        known = {
            "dtype": "float32",
            "end_time": float(start + (len(self.data) - 1) / self.timeline.rate_hz),
            "is_mem_mapped": self.memmap,
            "modality": "sequence",
            "n_signals": self.data.shape[1],
            "n_timestamps": len(self.data),
            "phase_shift_per_signal": False,
            "sampling_rate": self.timeline.rate_hz,
            "start_time": float(start),
        }
        _write_yaml(self.folder / "meta.yml", known | fields)
        self.moments.save(self.folder / "meta")


class ScreenFiles:
    """The device `screen`, filled trial by trial, with a blank before each where the timeline has one."""

    def __init__(self, folder: Path, timeline: Timeline) -> None:
        for name in ("data", "meta"):
            (folder / name).mkdir(parents=True)
        self.folder, self.timeline = folder, timeline
        self.times_s: list[np.ndarray] = []
        self.trials = self.frames = 0
        self.image_size: list[int] = []
        self.moments = Moments(np.zeros(()), np.zeros(()), np.zeros(()))

    def put(self, row: int, shown: np.ndarray, fields: dict[str, Any]) -> None:
        """The frames of a trial (frames, height, width[, channels]) and what its file says of it."""
        onset = self.timeline.onset[row]
        self.image_size = list(shown.shape[1:])
        if self.timeline.blank:
            self._blank(onset - self.timeline.blank)
        np.save(self.folder / "data" / f"{self.trials:05d}.npy", shown[0] if fields["modality"] == "image" else shown)
        self.moments.add(shown.reshape(-1))
        self._trial(onset + np.arange(len(shown)), fields)

    def finish(self) -> None:
        self._blank(int(self.timeline.onset[-1] + self.timeline.shown[-1]))
        np.save(self.folder / "timestamps.npy", np.concatenate(self.times_s))
        _write_yaml(self.folder / "meta.yml", {"modality": "screen", "frame_rate": self.timeline.rate_hz})
        self.moments.save(self.folder / "meta")

    def _blank(self, sample: int) -> None:
        self._trial(np.array([sample]), {"modality": "blank", "interleave_value": GREY})

    def _trial(self, samples: np.ndarray, fields: dict[str, Any]) -> None:
        own = {"first_frame_idx": self.frames, "num_frames": len(samples), "image_size": self.image_size}
        _write_yaml(self.folder / "meta" / f"{self.trials:05d}.yml", own | fields)
        self.times_s.append(self.timeline.times_s(samples))
        self.trials, self.frames = self.trials + 1, self.frames + len(samples)


@dataclass
class Moments:
    """Mean and standard deviation of values that come in parts (..., signals), NaN left out."""

    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    def add(self, values: np.ndarray) -> None:
        values = np.asarray(values, np.float64)
        self.count = self.count + (~np.isnan(values)).sum(axis=0)
        self.total = self.total + np.nansum(values, axis=0)
        self.squares = self.squares + np.nansum(values**2, axis=0)

    def save(self, folder: Path) -> None:
        """Writes `means.npy` and `stds.npy`, (1, signals), NaN for a signal without values."""
        seen = np.where(self.count > 0, self.count, np.nan)
        means = self.total / seen
        stds = np.sqrt(np.maximum(self.squares / seen - means**2, 0.0))
        for name, values in (("means", means), ("stds", stds)):
            np.save(folder / f"{name}.npy", values if values.ndim == 0 else values[None])


def _check(recording: Recording) -> None:
    start = f"{recording.name}: experanto holds"
    if len(recording.animals) != 1:
        raise ValueError(f"{start} one animal each, found {', '.join(recording.animals)}")
    if recording.video != recording.dynamic:
        found = "videos with one" if recording.video else "images with responses in time"
        raise ValueError(f"{start} videos with responses in time, or images with one response each; found {found}")
    channels = recording.stimuli.shape[4 if recording.video else 3 :]
    if channels not in ((), (3,)):
        raise ValueError(f"{start} stimuli that are grey or have 3 channels, found {channels[0]}")
    if not len(recording.trials):
        raise ValueError(f"{start} at least one trial, found none")
    if (recording.frames == 0).any():
        row = np.flatnonzero(recording.frames == 0)[0]
        raise ValueError(f"{start} trials of at least one frame, found none in trial {row}")
    names = _signal_names(recording)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{start} one signal of each name, found {', '.join(doubled)} twice")


def _timeline(recording: Recording, blank_ms: float, image_ms: float, image_rate_hz: float, start_s: float) -> Timeline:
    rate = float(recording.sampling_rate_hz if recording.video else image_rate_hz)
    blank = max(0, round(blank_ms / 1000 * rate))
    if recording.video:
        shown = held = recording.frames
    else:
        shown = np.full(len(recording.trials), max(1, round(image_ms / 1000 * rate)))
        held = shown + blank
        if held[0] / rate * 1000 < IMAGE_WINDOW_MS[1]:
            raise ValueError(
                f"image_ms and blank_ms: found {held[0] / rate * 1000:g} ms together, expected at least "
                f"{IMAGE_WINDOW_MS[1]:g}, until when the response to an image is averaged"
            )
    onset = np.cumsum(blank + shown) - shown
    # The blank at the end has a sample, too.
    end = int(onset[-1] + shown[-1] + max(blank, 1))
    return Timeline(rate, float(start_s), onset, shown, held, blank, end)


def _signal_groups(recording: Recording) -> dict[str, list[str]]:
    """Names of the signals of each device: those of the pupil and the eye, in the published order, and the rest."""
    names = _signal_names(recording)
    order = PUBLISHED["eye_tracker", 4]
    known = [name for name in order if name in names]
    eye = [name for name in names if name not in order and name.startswith(("pupil", "eye"))]
    groups = {"eye_tracker": known + eye, "treadmill": [name for name in names if name not in (*order, *eye)]}
    return {device: group for device, group in groups.items() if group}


def _signal_names(recording: Recording) -> list[str]:
    return [*_behavior_names(recording), *(CENTER if recording.pupil_center is not None else ())]


def _behavior_names(recording: Recording) -> tuple[str, ...]:
    if recording.behavior is None:
        return ()
    return recording.behavior_names or tuple(f"behavior_{i}" for i in range(recording.behavior.shape[1]))


def _named_signals(recording: Recording, trial: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    signals = dict(zip(_behavior_names(recording), trial.get("behavior", ()), strict=True))
    return signals | dict(zip(CENTER, trial.get("pupil_center", ()), strict=False))


def _trial_fields(recording: Recording, row: int) -> dict[str, Any]:
    trial = recording.trials.iloc[row]
    texts = {"tier": "tier"} | TEXT_COLUMNS
    fields = {field: str(trial[column]) for column, field in texts.items() if trial.get(column, "") != ""}
    fields |= {flag: bool(trial[flag]) for flag in ("valid_trial", "withheld") if flag in trial}
    return {"modality": "video" if recording.video else "image"} | fields


def _write_neurons(recording: Recording, folder: Path) -> dict[str, str]:
    """One file per property in the folder's `meta`; returns their names, as the device's `meta.yml` lists them."""
    neurons = recording.neurons
    ids = neurons["neuron_id"].to_numpy(object).astype(np.str_)
    # The published ones are whole numbers; text stays text where a number would not give it back.
    numbered = all(str(unit).isdecimal() and str(int(unit)) == unit and len(unit) < 19 for unit in ids)
    properties: dict[str, np.ndarray] = {"unit_ids": ids.astype(np.int64) if numbered else ids}
    if not neurons[list(POSITION_COLUMNS)].isna().all(axis=None):
        properties["cell_motor_coordinates"] = neurons[list(POSITION_COLUMNS)].to_numpy(np.float64)
    for column in ("area", "layer"):
        if (neurons[column] != "").any():
            properties[column] = neurons[column].to_numpy(object).astype(np.str_)
    for name, values in properties.items():
        np.save(folder / "meta" / f"{name}.npy", values)
    return {name: f"meta/{name}.npy" for name in properties}


def _write_yaml(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(yaml.dump(fields, Dumper=DUMPER, allow_unicode=True), encoding="utf-8")
