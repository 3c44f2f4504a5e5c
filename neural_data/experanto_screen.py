"""The screen of an experanto folder: which frame was shown when, trial by trial.

Comes in: the folder `screen`. Goes out: `Screen`, whose `at(times_s)` answers as the other devices do, and its trials.
Trials of images and videos have their frames in files of their own, opened when they are asked for; blank and invalid
trials are one constant grey. A trial lasts from its first frame to the first frame of the next trial.

The cache `combined_meta.json`, which other readers write into the folder, may be older than the files of the trials: it
is read only where those are absent, and never written.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from neural_data.experanto_meta import Meta, file_inside, read_meta
from neural_data.trial_files import npy_file

MODALITIES = ("image", "video", "blank", "invalid")
# A frame counts as shown this much before its time: screens and queries round differently (the format's own figure).
EARLY_S = 1e-4


@dataclass(frozen=True)
class ScreenTrial:
    """One presentation: `frames` frames from `first_frame` on of the screen's timestamps.

    `image_size`: (height, width[, channels]). `file` has the frames of an image or a video, None otherwise, when all
    pixels are `grey`.
    """

    name: str
    meta: Meta
    modality: str
    first_frame: int
    frames: int
    image_size: tuple[int, ...]
    file: Path | None = None
    grey: float = np.nan

    def read(self) -> np.ndarray:
        """(frames, height, width[, channels]): a memory map. Raises ValueError for a file of another shape."""
        expected = (self.frames, *self.image_size)
        if self.file is None:
            return np.broadcast_to(np.float32(self.grey), expected)
        array = npy_file(self.file)
        # Images have no axis of frames, or one of length 1.
        shape = (1, *array.shape) if array.ndim == len(self.image_size) else array.shape
        if shape != expected or array.dtype.kind not in "iuf":
            wanted = self.image_size if self.modality == "image" else expected
            raise ValueError(
                f"{self.file}: found {array.dtype} of shape {array.shape}, expected numbers of shape {wanted} "
                f"as in {self.meta.path.name}"
            )
        return array.reshape(shape)


@dataclass(frozen=True)
class Screen:
    """`timestamps_s`: float64 (frames,), increasing, the time of each frame of each trial in turn."""

    folder: Path
    meta: Meta
    timestamps_s: np.ndarray
    trials: tuple[ScreenTrial, ...]

    @property
    def interval_s(self) -> tuple[float, float]:
        """Times of the first and the last frame."""
        return float(self.timestamps_s[0]), float(self.timestamps_s[-1])

    def times_s(self, trial: ScreenTrial) -> np.ndarray:
        """float64 (frames,): when the frames of a trial were shown."""
        return self.timestamps_s[trial.first_frame : trial.first_frame + trial.frames]

    def at(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames float32 (times, height, width[, channels]) on the screen, and the mask of times that have one.

        Raises ValueError where the trials that were shown differ in size.
        """
        times = np.asarray(times_s, np.float64)
        frame = np.searchsorted(self.timestamps_s, times + EARLY_S) - 1
        start, end = self.interval_s
        last = self.trials[-1].first_frame + self.trials[-1].frames
        valid = (times >= start) & (times <= end) & (frame < last)
        size = self.trials[0].image_size
        shown = np.full((len(times), *size), np.nan, np.float32)
        place = np.searchsorted(self._first_frames, frame, "right") - 1
        for row in np.unique(place[valid]):
            trial, mine = self.trials[row], valid & (place == row)
            if trial.image_size != size:
                raise trial.meta.wrong("image_size", f"{list(size)} as in {self.trials[0].meta.path.name}")
            shown[mine] = trial.read()[frame[mine] - trial.first_frame]
        return shown, valid

    @cached_property
    def _first_frames(self) -> np.ndarray:
        return np.array([trial.first_frame for trial in self.trials])


def open_screen(folder: Path, meta: Meta) -> Screen:
    """Raises FileNotFoundError, or ValueError naming the file and the field that does not fit."""
    timestamps = _timestamps(folder / "timestamps.npy")
    by_name = meta.flag("use_stimuli_names", False)
    trials = tuple(_trial(folder, name, fields, by_name) for name, fields in _metas(folder))
    _check_order(folder, trials, timestamps)
    return Screen(folder, meta, timestamps, trials)


def _timestamps(path: Path) -> np.ndarray:
    times = npy_file(path)
    if times.ndim != 1 or not len(times) or times.dtype.kind not in "iuf":
        raise ValueError(f"{path}: found {times.dtype} of shape {times.shape}, expected (frames,) times in seconds")
    times = np.asarray(times, np.float64)
    wrong = np.flatnonzero(~(np.diff(times) > 0))
    if len(wrong) or not np.isfinite(times).all():
        at = int(wrong[0]) if len(wrong) else 0
        found = " and then ".join(str(float(time)) for time in times[at : at + 2])
        raise ValueError(f"{path}: found {found} s from frame {at} on, expected times that increase")
    return times


def _metas(folder: Path) -> list[tuple[str, Meta]]:
    """The trials in the order of their numbers."""
    files = [file for file in (folder / "meta").glob("*.yml") if re.fullmatch(r"\d+", file.stem)]
    if files:
        return [(file.stem, read_meta(file)) for file in sorted(files, key=lambda file: int(file.stem))]
    combined = folder / "combined_meta.json"
    if not combined.is_file():
        raise FileNotFoundError(f"{folder / 'meta'}: no trials, expected files 00000.yml, 00001.yml, ...")
    try:
        table = json.loads(combined.read_bytes())
        return [(name, Meta(combined / name, dict(table[name]))) for name in sorted(table, key=int)]
    except (ValueError, TypeError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{combined}: found no table of numbered trials ({line})") from None


def _trial(folder: Path, name: str, meta: Meta, by_name: bool) -> ScreenTrial:
    modality = meta.text("modality").lower()
    if modality not in MODALITIES:
        raise meta.wrong("modality", f"{', '.join(MODALITIES[:-1])} or {MODALITIES[-1]}")
    size_expected = "[height, width] or [height, width, channels]"
    size = tuple(meta.wholes("image_size", size_expected))
    if len(size) not in (2, 3) or min(size) < 1:
        raise meta.wrong("image_size", size_expected)
    # Only videos count their frames: exporters write other figures for the rest.
    frames = meta.whole("num_frames") if modality == "video" else 1
    if frames < 1:
        raise meta.wrong("num_frames", "at least 1 frame")
    first = meta.whole("first_frame_idx")
    if modality in ("blank", "invalid"):
        return ScreenTrial(name, meta, modality, first, frames, size, grey=meta.number("interleave_value"))
    data = folder / "data"
    file = file_inside(data, f"{meta.text('stimulus_name')}.npy", meta) if by_name else data / f"{name}.npy"
    return ScreenTrial(name, meta, modality, first, frames, size, file)


def _check_order(folder: Path, trials: tuple[ScreenTrial, ...], timestamps: np.ndarray) -> None:
    following = 0
    for trial in trials:
        if trial.first_frame != following:
            raise trial.meta.wrong("first_frame_idx", f"{following}, which follows the frames of the trials before")
        following += trial.frames
    if following > len(timestamps):
        path = folder / "timestamps.npy"
        raise ValueError(f"{path}: found {len(timestamps)} times, expected {following}, one per frame of all trials")
