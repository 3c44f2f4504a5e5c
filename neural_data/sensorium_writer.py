"""A recording of one animal, written file by file as the mice of the Sensorium competitions are laid out.

Comes in: a `Recording` of images or of videos. Goes out: a folder or zip that `read_sensorium` and the competitions'
own loaders read: a float64 file per trial and modality, videos (H, W, frames) padded with NaN to 324 frames, zeros
where responses are withheld or there is no behavior, and the statistics of the training trials: of images one number
over all pixels, of everything else one per element, of videos therefore one per pixel, neuron and frame.
"""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from neural_data.recording import Recording
from neural_data.sensorium_statistics import over_pixels, per_element
from neural_data.whole_folder import whole_folder

PADDED_FRAMES = 324
BRANCHES = {"static": ("all", "stimulus_frame"), "dynamic": ("all",)}
UNHASHED = "0" * 32


def sensorium_folder_name(recording: Recording) -> str:
    """Like the published ones: static<animal>-GrayImageNet-<hash> or -ColorImageNet-, dynamic<animal>-Video-<hash>."""
    kind = "Video" if recording.video else "GrayImageNet" if len(recording.stimuli.shape) == 3 else "ColorImageNet"
    return f"{'dynamic' if recording.video else 'static'}{recording.animals[0]}-{kind}-{UNHASHED}"


def write_sensorium_static(recording: Recording, folder: str | Path, as_zip: bool = False) -> Path:
    """Writes images and responses as Sensorium 2022 has them, in colour as Franke et al.; returns the folder or zip.

    The reader takes the animal's name from the folder's: see `sensorium_folder_name`. Image ids are the column
    `image_id` of the trials, or rows of the stimuli. Raises ValueError where the layout cannot hold the recording, or
    the folder is there and not empty.
    """
    if recording.video or recording.dynamic:
        raise ValueError(f"{recording.name}: holds videos or responses in time, expected images and one value each")
    _check(recording)
    with _whole_or_absent(Path(folder), as_zip) as (unfinished, written):
        for trial in range(len(recording.trials)):
            found = recording.trial(trial)
            channels = found["images"] if found["images"].ndim == 3 else found["images"][..., None]
            found["images"] = np.moveaxis(channels, -1, 0).astype(np.float32)
            _write_trial(unfinished, trial, _complete(recording, trial, found, ()))
        _write_tables(recording, unfinished)
        _write_statistics(recording, unfinished, "images", "static")
    return written


def write_sensorium_video(
    recording: Recording, folder: str | Path, padded_frames: int = PADDED_FRAMES, as_zip: bool = False
) -> Path:
    """Writes videos and responses as Sensorium 2023 has them; returns the folder or zip.

    Every array is padded to `padded_frames`, or to the longest trial. The layout does not say which trials repeat a
    clip. Raises ValueError as `write_sensorium_static` does.
    """
    if not (recording.video and recording.dynamic) or len(recording.stimuli.shape) != 4:
        raise ValueError(f"{recording.name}: expected grey videos, and responses in time")
    _check(recording)
    length = max(padded_frames, recording.responses.shape[2])
    with _whole_or_absent(Path(folder), as_zip) as (unfinished, written):
        for trial, frames in enumerate(recording.frames):
            found = recording.trial(trial)
            found["videos"] = np.moveaxis(found.pop("video"), 0, -1)
            complete = _complete(recording, trial, found, (frames,))
            _write_trial(unfinished, trial, {name: _padded(values, length) for name, values in complete.items()})
        _write_tables(recording, unfinished)
        _write_statistics(recording, unfinished, "videos", "dynamic")
    return written


def _check(recording: Recording) -> None:
    if len(recording.animals) != 1:
        raise ValueError(f"{recording.name}: holds {len(recording.animals)} animals, a folder of Sensorium holds one")
    if (recording.trials["tier"] == "").any():
        raise ValueError(f"{recording.name}: has trials without tier, expected one such as train, oracle or test")
    if (recording.frames < 1).any():
        raise ValueError(f"{recording.name}: has trials without frames, expected one or more")


@contextmanager
def _whole_or_absent(folder: Path, as_zip: bool) -> Iterator[tuple[Path, Path]]:
    """The folder to write into, beside the final one, and what it becomes when all went well."""
    if not as_zip:
        with whole_folder(folder) as unfinished:
            _write_config(unfinished)
            yield unfinished, folder
        return
    written = folder.with_name(f"{folder.name}.zip")
    if written.exists():
        raise ValueError(f"{written}: exists already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.unfinished") as beside:
        unfinished = Path(beside) / folder.name
        unfinished.mkdir()
        _write_config(unfinished)
        yield unfinished, written
        _pack(unfinished, Path(beside) / "whole.zip").rename(written)


def _write_config(folder: Path) -> None:
    # The competitions' loader writes this file where it is absent, which fails where data are read-only.
    (folder / "config.json").write_text(json.dumps({"links": {}}))


def _pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            handle.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return archive


def _complete(
    recording: Recording, trial: int, found: dict[str, np.ndarray], time: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The arrays of a trial with zeros for what is withheld. Raises ValueError for gaps, which would end the trial."""
    channels = {"behavior": 2 if time else 3, "pupil_center": 2}
    for name in channels:
        found.setdefault(name, np.zeros((channels[name], *time)))
    if recording.withheld[trial] or np.isnan(found["responses"]).all():
        found["responses"] = np.zeros((len(recording.neurons), *time))
    for name, values in found.items():
        if time and (values.ndim < 2 or values.shape[-1:] != time):
            found_shape, expected = f"found shape {values.shape}", f"expected {time[0]} frames as its last axis"
            raise ValueError(f"{recording.name}: {name} of trial {trial}: {found_shape}, {expected}")
        if np.isnan(values).any():
            raise ValueError(f"{recording.name}: {name} of trial {trial} hold NaN, which the layout keeps for padding")
    return found


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    padding = [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]
    return np.pad(values.astype(float), padding, constant_values=np.nan)


def _write_trial(folder: Path, trial: int, arrays: dict[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        values = values if name == "images" else values.astype(float)
        _save(folder / "data" / name / f"{trial}.npy", np.ascontiguousarray(values))


def _write_tables(recording: Recording, folder: Path) -> None:
    neurons, trials, n = recording.neurons, recording.trials, len(recording.neurons)
    key = recording.animals[0].split("-")
    named = len(key) == 3 and all(part.isdecimal() for part in key)
    arrays = {"unit_ids": _numbers_or_text(neurons["neuron_id"])}
    place = neurons[["x_um", "y_um", "z_um"]].to_numpy(float)
    if np.isfinite(place).all():
        arrays["cell_motor_coordinates"] = np.round(place).astype(np.int64)
    arrays |= {name: _text(neurons[name]) for name in ("area", "layer") if (neurons[name] != "").any()}
    if named:
        arrays |= {
            name: np.full(n, int(part)) for name, part in zip(("animal_ids", "sessions", "scan_idx"), key, strict=True)
        }
    for name, values in arrays.items():
        _save(folder / "meta" / "neurons" / f"{name}.npy", values)
    arrays = {"tiers": _text(trials["tier"]), "trial_idx": np.arange(len(trials))}
    if "trial_id" in trials:
        arrays["trial_idx"] = _numbers_or_text(trials["trial_id"])
    if recording.video:
        arrays["target_fps"] = np.full(len(trials), recording.sampling_rate_hz)
    else:
        prefix = "frame" if len(recording.stimuli.shape) == 3 else "colorframeprojector"
        arrays[f"{prefix}_image_id"] = trials["image_id" if "image_id" in trials else "stimulus"].to_numpy()
        classes = trials["stimulus_class"] if "stimulus_class" in trials else ["imagenet"] * len(trials)
        arrays[f"{prefix}_image_class"] = _text(classes)
    for name, values in arrays.items():
        _save(folder / "meta" / "trials" / f"{name}.npy", values)


def _text(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=np.str_)


def _numbers_or_text(values: Any) -> np.ndarray:
    """Ids as the published folders have them: numbers where all are, text otherwise."""
    texts = _text(values)
    canonical = all(text.isascii() and text.isdecimal() and str(int(text)) == text and len(text) < 19 for text in texts)
    return texts.astype(np.int64) if canonical else texts


def _write_statistics(recording: Recording, folder: Path, stimuli: str, kind: str) -> None:
    """Of the training trials, or of all that have responses where there is no such tier."""
    chosen = (recording.trials["tier"] == "train").to_numpy()
    rows = np.flatnonzero(chosen if chosen.any() else ~recording.withheld)
    for name in (stimuli, "responses", "behavior", "pupil_center"):
        files = [folder / "data" / name / f"{row}.npy" for row in rows]
        if not files:
            continue
        found = over_pixels(files) if name == "images" else per_element(files)
        for statistic, values in found.items():
            for branch in BRANCHES[kind]:
                _save(folder / "meta" / "statistics" / name / branch / f"{statistic}.npy", values)


def _save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values, allow_pickle=False)
